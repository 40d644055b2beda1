"""An HTTP client that reads so much of an answer and no more, and goes where it is sent and nowhere else.

Our own: httpx reads a body to its end and unpacks it on the way, and has no setting for how much that may be.
"""

from __future__ import annotations

import zlib
from types import ModuleType
from typing import Any

from ..protocol import AnswerError

LONGEST_BODY = 4 * 2**20
"""Bytes of an answer as it arrives, and of the same after unpacking. The longest answer that can be asked for, 131072
tokens, takes less."""

KEPT_HEADERS = ("retry-after", "retry-after-ms", "location")
"""What is read of an answer's headers. Its encoding is not: JSON is UTF-8, and some of Python's decoders unpack."""


def client_class(openai: ModuleType) -> Any:
    """The openai package's asynchronous HTTP client, with these bounds. It raises AnswerError beyond them."""

    class Bounded(openai.DefaultAsyncHttpxClient):  # type: ignore[name-defined]
        def __init__(self, **options: Any):
            super().__init__(**options, follow_redirects=False, headers={"Accept-Encoding": "identity"})

        async def send(self, request: Any, **options: Any) -> Any:
            """The whole answer, read."""
            response = await super().send(request, **{**options, "stream": True, "follow_redirects": False})
            try:
                body = await _read(response)
            finally:
                await response.aclose()
            return type(response)(
                response.status_code,
                headers={name: response.headers[name] for name in KEPT_HEADERS if name in response.headers},
                content=body,
                request=request,
                default_encoding="utf-8-sig",
            )

    return Bounded


async def _read(response: Any) -> bytes:
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > LONGEST_BODY:
            raise too_long(response)
    return unpacked(bytes(body), response)


def unpacked(body: bytes, response: Any) -> bytes:
    """The body without the packing that servers were asked not to use. Raises AnswerError for any but gzip."""
    packing = response.headers.get("content-encoding", "").strip().lower()
    if packing in ("", "identity"):
        return body
    if packing not in ("gzip", "x-gzip"):
        raise AnswerError(
            f"{response.url.host} sends its answer packed ({packing[:40]!r}) although it was asked not to, and it is "
            "not read. Use another endpoint, or switch that off in the server or proxy."
        )
    try:
        plain = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(body, LONGEST_BODY + 1)
    except zlib.error:
        raise AnswerError(
            f"{response.url.host} sends an answer that says it is packed with gzip and is not.", try_again=True
        ) from None
    if len(plain) > LONGEST_BODY:
        raise too_long(response)
    return plain


def too_long(response: Any) -> AnswerError:
    return AnswerError(
        f"{response.url.host} answered {response.status_code} with more than {LONGEST_BODY // 2**20} MiB, which no "
        "chat completion takes. It was not read further. Check base_url."
    )
