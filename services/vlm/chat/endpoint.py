"""Questions to an OpenAI-compatible chat endpoint: OpenAI, vLLM, Ollama, LM Studio, llama.cpp and others."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from ..answers import excerpt
from ..pictures import jpeg_data_url
from ..protocol import Answer, AnswerError, Poll, Question, SetupError, UnusableAnswer, complaint
from . import wire
from .addresses import check_key_variable, find_key, is_this_machine, key_hint, normalize_base_url
from .background import iterate
from .bounded import client_class
from .secrets import out_of_logs, redact
from .wire import Detail, Dialect

log = logging.getLogger(__name__)

INSTALL = "pip install openai"
LONGEST_BACKOFF = 30.0
LONGEST_WAIT = 120.0
"""Seconds a server may ask to wait (Retry-After); beyond it, waiting is the artist's decision."""
MODELS_TIMEOUT = 10.0
SHOWN_MODELS = 12


@dataclass(frozen=True)
class ChatEndpoint:
    """How to reach a model and how to ask it. Raises SetupError for settings that cannot work."""

    base_url: str
    """Kept as normalize_base_url gives it."""
    model: str
    key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable with the key. The key itself is read when it is used, and never kept."""
    temperature: float | None = None
    """None for the endpoint's own."""
    max_tokens: int = 4096
    """Of one answer."""
    timeout: float = 120.0
    """Seconds for one answer."""
    retries: int = 3
    """Further attempts after the first."""
    image_detail: Detail = "auto"
    image_size: int = 1024
    """Longest side in pixels of a picture that is sent."""
    jpeg_quality: int = 90
    """1..100"""
    backoff: float = 1.0
    """Seconds before the first retry, doubling."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", normalize_base_url(self.base_url))
        check_key_variable(self.key_variable, self.base_url)
        check_model(self.model)

    @property
    def identity(self) -> Hashable:
        """What decides what is answered. How long is waited, how often and with which key does not."""
        return (
            type(self).__name__,
            self.base_url,
            self.model,
            self.temperature,
            self.image_detail,
            self.image_size,
            self.jpeg_quality,
        )

    def answers(self, questions: Sequence[Question], poll: Poll, in_flight: int = 1) -> Iterator[Answer]:
        """Answers as they arrive; see VisionLanguageModel. Raises SetupError when the library or the key is missing."""
        openai = import_openai()
        key = find_key(self.base_url, self.key_variable)

        async def work(put: Callable[[Answer], None]) -> None:
            with out_of_logs(key):
                async with make_client(openai, self, key) as client:
                    session = _Session(openai, client, self, key)
                    free = asyncio.Semaphore(in_flight)

                    async def answer(index: int, question: Question) -> None:
                        async with free:
                            put(Answer(index, await session.settle(question)))

                    await asyncio.gather(*(answer(index, question) for index, question in enumerate(questions)))

        yield from iterate(work, poll)


def check_model(name: str) -> None:
    """Raises SetupError for a model without a name."""
    if not name.strip():
        raise SetupError("model is empty. Give the name of a model that reads images, as the endpoint lists it.")


def import_openai() -> ModuleType:
    """The `openai` package. Raises SetupError with the command that installs it."""
    try:
        import openai
    except ImportError:
        raise SetupError(
            f"Chat endpoints need the openai package. Install it into ComfyUI's Python ({INSTALL}) and restart."
        ) from None
    return openai


def make_client(openai: ModuleType, endpoint: ChatEndpoint, key: str) -> Any:
    """A client that does not retry (see `_Session.settle`), follows no redirect, and reads no endless answer.

    Raises SetupError for a proxy of the environment that cannot be used.
    """
    # A proxy from the environment cannot reach this machine's own servers, and must not see the key.
    local = is_this_machine(urlsplit(endpoint.base_url).hostname)
    try:
        http_client = client_class(openai)(trust_env=not local)
    except ImportError:
        raise SetupError(
            "The environment names a SOCKS proxy (ALL_PROXY or HTTPS_PROXY), and that needs one more package: "
            'pip install "httpx[socks]" into ComfyUI\'s Python. Then restart.'
        ) from None
    except Exception:  # the library raises what it likes for an address it cannot read
        # Not quoted: the address may hold a password.
        raise SetupError(
            "A proxy in the environment (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY) is not an address that can be used. It "
            "looks like http://proxy.example:3128. Correct it and restart ComfyUI, or unset it."
        ) from None
    client = openai.AsyncOpenAI(
        api_key=key, base_url=endpoint.base_url, timeout=endpoint.timeout, max_retries=0, http_client=http_client
    )
    if urlsplit(endpoint.base_url).hostname != "api.openai.com":
        # Read from the environment by the client; they are OpenAI's business only.
        client.organization = client.project = None
    return client


class _Session:
    """Asks one endpoint questions, learning on the way which optional parameters it takes."""

    def __init__(self, openai: ModuleType, client: Any, endpoint: ChatEndpoint, key: str):
        self.openai = openai
        self.client = client
        self.endpoint = endpoint
        self.key = key
        self.dialect = Dialect(temperature=endpoint.temperature is not None)

    async def settle(self, question: Question) -> object:
        """What the question's `read` makes of the answer, or the AnswerError after the last attempt.

        The openai client's own retries do not do: they know nothing of answers that came and cannot be used, which
        share the count; ask on for an account without credit; measure the time-out from byte to byte, not for the
        answer; and do not tell the artist why he is waiting.
        """
        pictures = await asyncio.to_thread(self._encode, question)
        note = ""
        for attempt in range(self.endpoint.retries + 1):
            try:
                text = await self._complete(question, pictures, note)
                return await asyncio.to_thread(question.read, text)
            except AnswerError as error:
                last = attempt == self.endpoint.retries
                if last or not error.try_again:
                    asked = f" (asked {attempt + 1} times)" if attempt else ""
                    return AnswerError(f"{error}{asked}")
                wait = self._backoff(attempt) if error.wait is None else error.wait
                if isinstance(error, UnusableAnswer):
                    note = complaint(error)
                log.warning(
                    "RealISR: %s Asking again in %.1f s (%d of %d).", error, wait, attempt + 1, self.endpoint.retries
                )
                await asyncio.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns")

    def _backoff(self, attempt: int) -> float:
        """Doubling, capped, and a little different for each of several requests that failed together."""
        return min(LONGEST_BACKOFF, self.endpoint.backoff * 2**attempt) * random.uniform(0.8, 1.2)

    def _encode(self, question: Question) -> list[str]:
        endpoint = self.endpoint
        return [jpeg_data_url(each.image, endpoint.image_size, endpoint.jpeg_quality) for each in question.pictures]

    async def _complete(self, question: Question, pictures: list[str], note: str) -> str:
        """The text of one answer. Parameters the endpoint rejects are left out from then on."""
        while True:
            used = self.dialect
            try:
                body = await self._post(wire.request(self.endpoint, used, question, pictures, note))
            except _Status as status:
                simpler = used.after_rejection(status.message, bool(question.fields)) if status.rejects else None
                if simpler is None:
                    raise await self._explain(status) from None
                log.warning(
                    "RealISR: %s does not take a parameter (%s); asking without it.",
                    self.endpoint.model,
                    status.message,
                )
                if self.dialect == used:  # else another request has learnt it meanwhile
                    self.dialect = simpler
                continue
            return await asyncio.to_thread(wire.content, body, self.endpoint.base_url, self.endpoint.max_tokens)

    async def _post(self, parameters: dict[str, Any]) -> str:
        """The body of an answer with status 200, the key taken out of it. Raises _Status and AnswerError."""
        openai, endpoint = self.openai, self.endpoint
        slow = AnswerError(
            f"{endpoint.base_url} did not answer within {endpoint.timeout:g} s. Raise timeout, lower image_size, or "
            "check that the model is loaded.",
            try_again=True,
        )
        try:
            create = self.client.chat.completions.with_raw_response.create
            raw = await asyncio.wait_for(create(**parameters), endpoint.timeout)
        except (openai.APITimeoutError, asyncio.TimeoutError):
            raise slow from None
        except openai.APIStatusError as error:
            headers = {name: redact(value, self.key) for name, value in error.response.headers.items()}
            raise _Status(error.status_code, await self._words(error.response), headers) from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, AnswerError):  # of the client: an answer without an end
                raise error.__cause__ from None
            cause = excerpt(redact(str(error.__cause__ or error), self.key), wire.SHOWN_BODY)
            raise AnswerError(
                f"{endpoint.base_url} cannot be reached or broke off: {cause}. Check base_url, and that the server "
                f"runs. {wire.USUAL_ADDRESSES}",
                try_again=True,
            ) from None
        return await self._body(raw.http_response)

    async def _body(self, response: Any) -> str:
        """The text of an answer without the key. Long ones are read beside the event loop, which others wait for."""
        return await asyncio.to_thread(redact, response.text, self.key)

    async def _words(self, response: Any) -> str:
        """What a server says about an error, or about where it would send us."""
        return await asyncio.to_thread(wire.error_message, await self._body(response))

    async def _explain(self, status: _Status) -> AnswerError:
        """An HTTP error in words, with what to do about it."""
        endpoint, code = self.endpoint, status.code
        said = f"{endpoint.base_url} answered {code}: {status.message.rstrip('.')}."
        if 300 <= code < 400:
            target = excerpt(status.headers.get("location", "")) or "nowhere"
            return AnswerError(
                f"{endpoint.base_url} answered {code} and points to {target}. Redirects are not followed: the pictures "
                "go to the address in base_url and to no other. If it is the right one, write it there."
            )
        if code in (401, 403):
            return AnswerError(f"{said} {key_hint(endpoint.base_url, endpoint.key_variable)}")
        if code in (404, 405):
            return AnswerError(f"{said} {await self._not_found()}")
        if code == 429 and "insufficient_quota" in status.message:
            return AnswerError(f"{said} The account has no credit left.")
        if code in (408, 409, 429) or code >= 500:
            wait = wire.retry_after(status.headers)
            if wait is not None and wait > LONGEST_WAIT:
                return AnswerError(f"{said} It asks to wait {wait:.0f} s. Queue again later, or use another endpoint.")
            return AnswerError(said, try_again=True, wait=wait)
        return AnswerError(f"{said} Check that {endpoint.model} reads images and that image_size is not too large.")

    async def _not_found(self) -> str:
        """Whether the model or the address is wrong: endpoints list their models."""
        try:
            raw = await asyncio.wait_for(self.client.models.with_raw_response.list(), MODELS_TIMEOUT)
        except (self.openai.OpenAIError, AnswerError, asyncio.TimeoutError):
            names = None
        else:
            names = await asyncio.to_thread(wire.model_names, await self._body(raw.http_response))
        if names is None:
            return f"There is no OpenAI-compatible endpoint at this address. {wire.USUAL_ADDRESSES}"
        if self.endpoint.model in names:
            return "Its list has this model; it may not be loaded, or not be for chat."
        shown = ", ".join(map(excerpt, names[:SHOWN_MODELS])) or "none"
        return f"It has no model {self.endpoint.model!r}. It lists: {shown}{'…' if len(names) > SHOWN_MODELS else ''}."


class _Status(Exception):
    """An answer with an HTTP error status, and the server's words without the key."""

    def __init__(self, code: int, message: str, headers: Mapping[str, str]):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.headers = headers

    @property
    def rejects(self) -> bool:
        """Whether it is about what was asked, so that asking otherwise may help."""
        return self.code in (400, 422)
