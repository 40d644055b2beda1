"""Requests and answers of the chat-completions protocol, and the ways in which endpoints differ over it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol

from ..answers import excerpt, parse_json
from ..protocol import AnswerError, Question

USUAL_ADDRESSES = (
    "Usual addresses: http://localhost:11434/v1 (Ollama), http://localhost:1234/v1 (LM Studio), "
    "http://localhost:8080/v1 (llama.cpp), http://localhost:8000/v1 (vLLM), https://api.openai.com/v1 (OpenAI)."
)
SHOWN_BODY = 300

Detail = Literal["auto", "low", "high"]
"""How closely a model is to look at a picture."""

SIMPLER_FORMAT: dict[str, Literal["json_object", ""]] = {"json_schema": "json_object", "json_object": ""}
SIMPLER_LIMIT: dict[str, Literal["max_completion_tokens", ""]] = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "",
}
FORMAT_WORDS = ("response_format", "json_schema", "json_object", "structured output", "grammar")


@dataclass(frozen=True)
class Dialect:
    """The optional parts of the protocol that an endpoint takes; the most at first."""

    response_format: Literal["json_schema", "json_object", ""] = "json_schema"
    """Kind of the parameter, "" for none."""
    limit: Literal["max_tokens", "max_completion_tokens", ""] = "max_tokens"
    """Name of the parameter, "" for none."""
    temperature: bool = True
    seed: bool = True
    system: bool = True
    """Whether there is a role of that name."""

    def after_rejection(self, message: str, formatted: bool) -> Dialect | None:
        """The dialect without what a server's message complains about; None when there is nothing to leave out.

        formatted: whether the request had a response_format. A complaint about nothing in particular is put down to
        it, the youngest part of the protocol.
        """
        text = message.lower()
        formatted = formatted and self.response_format != ""
        if formatted and any(word in text for word in FORMAT_WORDS):
            return replace(self, response_format=SIMPLER_FORMAT[self.response_format])
        if self.limit and self.limit in text:
            return replace(self, limit=SIMPLER_LIMIT[self.limit])
        if self.temperature and "temperature" in text:
            return replace(self, temperature=False)
        if self.seed and "seed" in text:
            return replace(self, seed=False)
        if self.system and "system" in text and ("role" in text or "message" in text):
            return replace(self, system=False)
        return replace(self, response_format="") if formatted else None


class Settings(Protocol):
    """What a request says beside the question. A ChatEndpoint has these."""

    @property
    def model(self) -> str: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def temperature(self) -> float | None: ...
    @property
    def image_detail(self) -> Detail: ...


def request(
    settings: Settings, dialect: Dialect, question: Question, pictures: list[str], note: str = ""
) -> dict[str, Any]:
    """Parameters of a completion. pictures: data URLs, one for each of the question's. note: put at the end."""
    parameters: dict[str, Any] = {
        "model": settings.model,
        "messages": messages(dialect, question, pictures, settings.image_detail, note),
    }
    if dialect.limit:
        parameters[dialect.limit] = settings.max_tokens
    if dialect.temperature and settings.temperature is not None:
        parameters["temperature"] = settings.temperature
    if dialect.seed and question.seed is not None:
        parameters["seed"] = question.seed
    if question.fields and dialect.response_format:
        parameters["response_format"] = response_format(dialect.response_format, question.fields)
    return parameters


def messages(
    dialect: Dialect, question: Question, pictures: list[str], detail: Detail, note: str
) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for picture, url in zip(question.pictures, pictures, strict=True):
        parts.append({"type": "text", "text": picture.label})
        parts.append({"type": "image_url", "image_url": {"url": url, "detail": detail}})
    parts.append({"type": "text", "text": f"{question.text}\n\n{note}" if note else question.text})
    if dialect.system:
        return [{"role": "system", "content": question.full_instruction}, {"role": "user", "content": parts}]
    return [{"role": "user", "content": [{"type": "text", "text": question.full_instruction}, *parts]}]


def response_format(kind: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """The structured-output parameter for an object of texts, all of them required."""
    if kind == "json_object":
        return {"type": "json_object"}
    schema = {
        "type": "object",
        "properties": {name: {"type": "string", "description": meaning} for name, meaning in fields.items()},
        "required": list(fields),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def content(body: str, base_url: str, max_tokens: int) -> str:
    """The text of a completion. Raises AnswerError for a body that is none, a refusal, and an answer cut off."""
    choice = _first_choice(body, base_url)
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    if message.get("refusal"):
        raise AnswerError(f"The model refused: {excerpt(str(message['refusal']))}")
    if choice.get("finish_reason") == "content_filter":
        raise AnswerError("The endpoint's content filter withheld the answer. Use another endpoint or model.")
    if choice.get("finish_reason") == "length":
        raise AnswerError(f"The answer was cut off after {max_tokens} tokens. Raise max_tokens.")
    return _text(message.get("content"))


def _first_choice(body: str, base_url: str) -> dict[str, Any]:
    try:
        completion = parse_json(body)
        choice = completion["choices"][0]
    except (ValueError, TypeError, LookupError):
        raise AnswerError(
            f"{base_url} answered something that is no chat completion: {error_message(body)}. Check base_url.",
            try_again=True,
        ) from None
    return choice if isinstance(choice, dict) else {}


def _text(value: object) -> str:
    """A message's content: a text, or a list of parts of which the text ones count."""
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        return "".join(part for part in parts if isinstance(part, str))
    return value if isinstance(value, str) else ""


def error_message(body: str) -> str:
    """The server's words from an error object of any of the usual shapes, or the beginning of whatever it sent."""
    try:
        found = parse_json(body)
    except ValueError:
        return excerpt(body, SHOWN_BODY) or "an empty answer"
    error = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        return excerpt(str(error), SHOWN_BODY)
    words = [error.get(name) for name in ("message", "detail", "param", "code")]
    told = dict.fromkeys(word if isinstance(word, str) else json.dumps(word) for word in words if word)
    return excerpt(" ".join(told) or body, SHOWN_BODY)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds a server asks to wait: a number, or a date; None when it does not say.

    The openai client reads it too, but for its own retries only, which stay off (see `_Session.settle`).
    """
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if (seconds := _number(value)) is not None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(value or "").timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):  # also dates before the year 1 and after 9999
        return None


def _number(value: str | None) -> float | None:
    try:
        return max(0.0, float(value or ""))
    except ValueError:
        return None


def model_names(body: str) -> list[str] | None:
    """Names in a list of models; None for what is no such list."""
    try:
        return [str(model["id"]) for model in parse_json(body)["data"]]
    except (ValueError, TypeError, LookupError):
        return None
