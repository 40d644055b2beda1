"""The golden files' toy tokenizer: bytes without merges, and special tokens by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

FIRST = 16384
BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
ORDER = BYTES + [byte for byte in range(256) if byte not in BYTES]
ID_OF_BYTE = {byte: FIRST + rank for rank, byte in enumerate(ORDER)}
BYTE_OF_ID = {id_: byte for byte, id_ in ID_OF_BYTE.items()}
RESERVED = re.compile(r"<reserved(\d{5})>")


class ByteTokenizer:
    def encode(self, text: str) -> list[int]:
        ids, end = [], 0
        for match in RESERVED.finditer(text):
            ids += [ID_OF_BYTE[byte] for byte in text[end : match.start()].encode()]
            ids.append(int(match[1]) + 4)
            end = match.end()
        return ids + [ID_OF_BYTE[byte] for byte in text[end:].encode()]

    def decode(self, ids: Sequence[int]) -> str:
        parts = [bytes([BYTE_OF_ID[i]]) if i in BYTE_OF_ID else f"<{i}>".encode() for i in ids]
        return b"".join(parts).decode(errors="replace")
