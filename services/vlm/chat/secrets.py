"""Taking a key out of what a server sends back, before anybody sees it.

Our own: log filters of other projects know the plain spelling of a key only, or look for the shapes of known ones.
"""

from __future__ import annotations

import base64
import logging
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

SHORTEST_SECRET = 8
"""A shorter one is a stand-in such as "none", which is part of ordinary words."""

WIRE_LOGS = ("httpcore.http11", "httpcore2.http11", "httpcore.http2", "httpcore2.http2")
"""Loggers that write down an answer's headers at their most talkative, whatever a server puts there."""

ESCAPE = re.compile(
    r"\\+(?:u00([0-9a-fA-F]{2})|x([0-9a-fA-F]{2})|[nrt])?"  # JSON's, and those of printed byte strings
    r"|%(?:25)*([0-9a-fA-F]{2})"  # of addresses, also escaped more than once
    r"|&#x0*([0-9a-fA-F]{2});|&#0*([0-9]{2,3});"  # of HTML
    r"|[\s\u00ad\u200b-\u200d\u2060\ufeff]+"  # line breaks, and characters without a width
)
BACKSLASHES = re.compile(r"\\*\Z")


def redact(text: str, key: str) -> str:
    """The text with [key] in place of the key, however a server came to quote it.

    As it is, escaped for JSON, addresses or HTML, broken into lines, as base64 or hexadecimal digits. To be used on
    whole texts: in a shortened one the beginning of a key is not recognised. Takes time in proportion to the text.
    """
    if len(key) < SHORTEST_SECRET:
        return text
    plain, spans = _unescaped(text)
    found = sorted(_found(plain, spellings(key)))
    parts: list[str] = []
    done = 0
    for first, end in found:
        start, end = _place(spans, first)[0], _place(spans, end - 1)[1]
        if end <= done:
            continue
        # A backslash before the key escaped its first character; what is left has to stay valid JSON.
        before = text[max(done, start - 64) : max(done, start)]
        parts += [text[done : max(done, start - 64)], BACKSLASHES.sub("", before), "[key]"]
        done = end
    return "".join([*parts, text[done:]])


@contextmanager
def out_of_logs(key: str) -> Iterator[None]:
    """Inside, the HTTP libraries log no header that quotes the key."""

    def clean(record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage(), key), ()
        return True

    with ExitStack() as stack:
        for logger in map(logging.getLogger, WIRE_LOGS):
            logger.addFilter(clean)
            stack.callback(logger.removeFilter, clean)
        yield


def spellings(key: str) -> set[str]:
    """The key as it is written without escapes: itself, in capitals, as hexadecimal digits, inside base64."""
    plain = "".join(key.split()).replace("\\", "")
    secret = key.encode()
    written = {plain, plain.lower(), plain.upper(), secret.hex(), secret.hex().upper()}
    for offset in range(3):  # what stands before the key decides which bits share a digit with it
        digits = base64.b64encode(bytes(offset) + secret).decode()
        inner = digits[-(-offset * 8 // 6) : (offset + len(secret)) * 8 // 6]
        written |= {inner, inner.replace("+", "-").replace("/", "_")}
    return written


def _found(text: str, needles: set[str]) -> list[tuple[int, int]]:
    places = []
    for needle in needles:
        start = text.find(needle)
        while start >= 0:
            places.append((start, start + len(needle)))
            start = text.find(needle, start + len(needle))
    return places


Spans = tuple[list[int], list[tuple[int, int, int]]]
"""Pieces of a text in order: where each begins without escapes; and where it begins and ends with them, and whether
it is an escape (1) or text that stands for itself (0)."""


def _unescaped(text: str) -> tuple[str, Spans]:
    """The text with its escapes read, without white space and backslashes, and where its pieces come from."""
    parts: list[str] = []
    starts: list[int] = []
    origins: list[tuple[int, int, int]] = []
    length = position = 0

    def add(part: str, start: int, end: int, escaped: int) -> None:
        nonlocal length
        if part:
            parts.append(part)
            starts.append(length)
            origins.append((start, end, escaped))
            length += len(part)

    for escape in ESCAPE.finditer(text):
        add(text[position : escape.start()], position, escape.start(), 0)
        add(_meant(escape), escape.start(), escape.end(), 1)
        position = escape.end()
    add(text[position:], position, len(text), 0)
    return "".join(parts), (starts, origins)


def _meant(escape: re.Match[str]) -> str:
    """The character that an escape stands for; "" for white space and for backslashes."""
    digits = escape[1] or escape[2] or escape[3] or escape[4]
    char = chr(int(digits, 16)) if digits else chr(int(escape[5])) if escape[5] else ""
    return "" if char.isspace() or char == "\\" else char


def _place(spans: Spans, index: int) -> tuple[int, int]:
    """Where the character at `index` of the unescaped text begins and ends in the text."""
    starts, origins = spans
    piece = bisect_right(starts, index) - 1
    start, end, escaped = origins[piece]
    return (start, end) if escaped else (start + index - starts[piece], start + index - starts[piece] + 1)
