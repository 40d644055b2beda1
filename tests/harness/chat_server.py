"""A chat-completions endpoint on the loopback interface, for clients of OpenAI-compatible servers.

It speaks HTTP for real, refuses what the protocol does not allow, records every request with its pictures decoded, and
answers what it is told to: texts, errors, nonsense, silence.

    with ChatServer() as chat:
        chat.script(Failure(429, retry_after=0), "A sharper prompt.")
        ... base URL chat.url ...
        assert len(chat.requests) == 2
        assert chat.requests[0].images[0].size == (64, 48)
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from .chat_protocol import ProtocolError, check_request, read_images, read_texts


@dataclass
class ChatRequest:
    """One POST to /v1/chat/completions.

    headers: names in lower case. body: the decoded JSON, or None where it was none. images, texts: the parts of all
    messages, in order. refused: what was wrong with it, "" where nothing was. time: time.monotonic() at its arrival.
    abandoned: the client closed the connection before it had an answer. sent: bytes of a Flood that went out.
    """

    headers: dict[str, str]
    body: dict[str, Any] | None
    time: float
    images: list[Image.Image] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    refused: str = ""
    abandoned: bool = False
    sent: int = 0


@dataclass(frozen=True)
class Answer:
    """A completion. content: the message's text; None for an answer without one. delay: seconds before it is sent."""

    content: str | None
    finish_reason: str = "stop"
    delay: float = 0.0


@dataclass(frozen=True)
class Failure:
    """An HTTP error. body: sent as it is; by default an error object of the protocol with `message`.

    retry_after: value of the Retry-After header, seconds. echo_authorization: quote the request's Authorization header
    in the message, as careless gateways do.
    """

    status: int
    message: str = "the server says no"
    body: bytes | None = None
    retry_after: float | None = None
    echo_authorization: bool = False
    delay: float = 0.0


@dataclass(frozen=True)
class Raw:
    """A body that need not be a completion, by default with status 200: malformed JSON, an HTML page, a redirect."""

    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True)
class Flood:
    """A body without an end: `part` again and again, until the client has gone, or `most` bytes were sent."""

    part: bytes
    status: int = 200
    most: int = 1 << 30


@dataclass(frozen=True)
class Hang:
    """No answer: the connection stays open until the client gives up or the server closes."""


@dataclass(frozen=True)
class Drop:
    """The connection is closed without an answer, after `sent` (for example half a status line)."""

    sent: bytes = b""


Reply = str | Answer | Failure | Raw | Flood | Hang | Drop
Script = Reply | Callable[[ChatRequest], Reply]
"""What answers one request. A text is an Answer; a function is given the request and returns any of the others."""

UNSCRIPTED = Failure(500, "no reply is scripted for this request")


class ChatServer:
    """Serves on 127.0.0.1 at a free port while it is entered.

    default: what answers once the script is used up. api_key: the only one accepted (None: any, or none).
    models: what GET /v1/models lists; requests for another model get 404. listing: what is sent in place of that list.
    takes_response_format: False refuses requests with `response_format`, as endpoints without structured output do.
    requests: in order of arrival.
    """

    def __init__(
        self,
        default: Script = UNSCRIPTED,
        *,
        api_key: str | None = None,
        models: tuple[str, ...] = (),
        listing: Raw | Flood | None = None,
        takes_response_format: bool = True,
    ):
        self.default = default
        self.api_key = api_key
        self.models = models
        self.listing = listing
        self.takes_response_format = takes_response_format
        self.requests: list[ChatRequest] = []
        self.released = threading.Event()
        self._script: deque[Script] = deque()
        self._lock = threading.Lock()
        self._http: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Base URL, with /v1."""
        assert self._http is not None
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def script(self, *replies: Script) -> None:
        """Queue replies for the next requests, one each."""
        with self._lock:
            self._script.extend(replies)

    def __enter__(self) -> ChatServer:
        handler = type("Handler", (_Handler,), {"chat": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._http is not None
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer_to(self, request: ChatRequest) -> Reply:
        with self._lock:
            self.requests.append(request)
            if refusal := self._refusal(request):
                return refusal
            reply = self._script.popleft() if self._script else self.default
        reply = reply(request) if callable(reply) else reply
        return Answer(reply) if isinstance(reply, str) else reply

    def _refusal(self, request: ChatRequest) -> Failure | None:
        if self.api_key is not None and request.headers.get("authorization") != f"Bearer {self.api_key}":
            request.refused = "wrong key"
            return Failure(401, "Incorrect API key provided.")
        if request.refused:
            return Failure(400, request.refused)
        assert request.body is not None
        if self.models and request.body["model"] not in self.models:
            request.refused = f"The model `{request.body['model']}` does not exist."
            return Failure(404, request.refused)
        if not self.takes_response_format and "response_format" in request.body:
            request.refused = "response_format is not supported by this model."
            return Failure(400, request.refused)
        return None


class _Handler(BaseHTTPRequestHandler):
    """One connection; keeps it alive between requests, as endpoints do."""

    chat: ChatServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            return self._send_json(404, error_body(f"Unknown path {self.path}", 404))
        if self.chat.listing is not None:
            return self._reply(ChatRequest({}, None, time.monotonic()), self.chat.listing)
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "tests"} for name in self.chat.models]
        self._send_json(200, {"object": "list", "data": listed})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/v1/chat/completions":
            return self._send_json(404, error_body(f"Unknown path {self.path}", 404))
        request = self._read(content)
        self._reply(request, self.chat._answer_to(request))

    def _read(self, content: bytes) -> ChatRequest:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = ChatRequest(headers, None, time.monotonic())
        try:
            request.body = check_request(content, headers.get("content-type", ""))
            request.images = read_images(request.body)
            request.texts = read_texts(request.body)
        except ProtocolError as error:
            request.refused = str(error)
        return request

    def _reply(self, request: ChatRequest, reply: Reply) -> None:
        waits = getattr(reply, "delay", 0.0)
        if isinstance(reply, Hang) or waits:
            request.abandoned = self._wait(None if isinstance(reply, Hang) else waits)
            if request.abandoned or self.chat.released.is_set():
                self.close_connection = True
                return
        if isinstance(reply, Answer):
            self._send_json(200, completion(request, reply))
        elif isinstance(reply, Failure):
            self._send_failure(request, reply)
        elif isinstance(reply, Raw):
            self._send(reply.status, reply.body, reply.content_type, reply.headers)
        elif isinstance(reply, Flood):
            self._flood(request, reply)
        elif isinstance(reply, Drop):
            self.wfile.write(reply.sent)
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def _flood(self, request: ChatRequest, flood: Flood) -> None:
        self.close_connection = True
        self.send_response(flood.status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        try:
            while request.sent < flood.most and not self.chat.released.is_set():
                self.wfile.write(flood.part)
                request.sent += len(flood.part)
        except ConnectionError:
            request.abandoned = True

    def _wait(self, seconds: float | None) -> bool:
        """Until the time is over, the server closes, or the client has gone; whether the last is so."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self.chat.released.wait(0.02):
            if deadline is not None and time.monotonic() >= deadline:
                return False
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self._peek():
                return True
        return False

    def _peek(self) -> bytes:
        try:
            return self.connection.recv(1, socket.MSG_PEEK)
        except ConnectionError:
            return b""

    def _send_failure(self, request: ChatRequest, failure: Failure) -> None:
        message = failure.message
        if failure.echo_authorization:
            message += f" (authorization: {request.headers.get('authorization')})"
        body = failure.body
        if body is None:
            body = json.dumps(error_body(message, failure.status)).encode()
        headers = {} if failure.retry_after is None else {"Retry-After": f"{failure.retry_after:g}"}
        self._send(failure.status, body, "application/json", headers)

    def _send_json(self, status: int, body: Mapping[str, Any]) -> None:
        self._send(status, json.dumps(body).encode(), "application/json", {})

    def _send(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet: the requests are recorded."""


def completion(request: ChatRequest, answer: Answer) -> dict[str, Any]:
    """A chat.completion object."""
    assert request.body is not None
    message = {"role": "assistant", "content": answer.content, "refusal": None}
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def error_body(message: str, status: int) -> dict[str, Any]:
    """An error object of the protocol."""
    kinds = {401: "invalid_request_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
