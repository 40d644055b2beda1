"""PURE's training items and losses written out: one token, one position at a time, losses in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

BOI, EOI, EOT, NEW_LINE, SIZE = 8197, 8196, 8710, 8803, 8804


def picture_tokens(codes: Sequence[Sequence[int]]) -> list[int]:
    """An image's block from its codes, row by row."""
    out = [BOI, SIZE + len(codes) // 4, SIZE + len(codes[0]) // 4]
    for row in codes:
        for code in row:
            out.append(code + 4 if code < 8192 else code - 8192 + 65536)
        out.append(NEW_LINE)
    out.append(EOI)
    return out


def item(
    turns: Sequence[tuple[str, str]], pictures: Sequence[Sequence[Sequence[int]]], encode: Callable[[str], list[int]]
) -> tuple[list[int], list[int]]:
    """Ids and labels of (speaker, text with <|image|>) turns."""
    ids, labels, used = [0], [-100], 0
    for speaker, text in turns:
        rest, spoken = text, []
        while "<|image|>" in rest:
            before, rest = rest.split("<|image|>", 1)
            spoken.extend(encode(before) if before else [])
            spoken.extend(picture_tokens(pictures[used]))
            used += 1
        if rest:
            spoken.extend(encode(rest))
        spoken.append(EOT)
        for token in spoken:
            ids.append(token)
            labels.append(token if speaker == "gpt" else -100)
    return ids, labels


def losses(logits: Sequence[Sequence[Sequence[float]]], labels: Sequence[Sequence[int]]) -> tuple[float, float]:
    """(cross entropy, z-loss) of float64 logits `[B][T][V]` and labels `[B][T]`."""
    entropies, squares = [], []
    for rows, marks in zip(logits, labels, strict=True):
        for place, row in enumerate(rows):
            top = max(row)
            partition = top + math.log(sum(math.exp(value - top) for value in row))
            if place + 1 < len(marks) and marks[place + 1] != -100:
                entropies.append(partition - row[marks[place + 1]])
            if marks[place] != -100:
                squares.append(partition**2)
    return sum(entropies) / len(entropies), sum(squares) / len(squares)
