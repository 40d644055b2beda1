"""Where in an answer a token stands, read off the tokens before it, and what it may be: as the reference does it.

The product never asks: it draws a grid of known size and leaves the row ends out.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from realisr.models.pure.grid import Grid
from realisr.models.pure.vocabulary import BOI, EOI, IMAGE_RANGES, NL, SIZE_BASE


class Slot(Enum):
    """What the next token is: TEXT, SIZE (height or width), IMAGE (a code), NEWLINE or END (both forced)."""

    TEXT = "text"
    SIZE = "size"
    IMAGE = "image"
    NEWLINE = "newline"
    END = "end"

    @property
    def forced(self) -> int | None:
        """The only token the slot can take, or None."""
        return {Slot.NEWLINE: NL, Slot.END: EOI}.get(self)


def slot_of(grid: Grid, n: int) -> Slot:
    """The n-th token after the sizes, counted from 1."""
    if n % (grid.columns + 1) == 0:
        return Slot.NEWLINE
    return Slot.END if n == grid.length else Slot.IMAGE


def next_slot(ids: Sequence[int]) -> tuple[Slot, Grid | None, int]:
    """What follows a prompt and answer `ids`: (slot, grid or None, the slot's number n after the sizes or 0).

    Raises ValueError where images are not properly opened and closed.
    """
    unclosed = sum(token == BOI for token in ids) - sum(token == EOI for token in ids)
    if unclosed == 0:
        return Slot.TEXT, None, 0
    if unclosed != 1:
        raise ValueError(f"{unclosed} images are open at once: an image starts with {BOI} and ends with {EOI}")
    start = len(ids) - 1 - list(reversed(ids)).index(BOI)
    body = ids[start + 1 :]
    if len(body) < 2:
        return Slot.SIZE, None, 0
    grid = Grid(body[0] - SIZE_BASE, body[1] - SIZE_BASE)
    n = len(body) - 1
    return slot_of(grid, n), grid, n


def mask_slot(logits: Tensor, slot: Slot, ranges: tuple[tuple[int, int], ...] = IMAGE_RANGES) -> Tensor:
    """Logits of the whole vocabulary with -inf where a slot forbids a token; text and size slots allow all.

    ranges: ids (ends excluded) that an image slot allows.
    """
    if slot in (Slot.TEXT, Slot.SIZE):
        return logits
    masked = torch.full_like(logits, -torch.inf)
    if slot.forced is not None:
        masked[..., slot.forced] = 0.0
        return masked
    for start, end in ranges:
        masked[..., start:end] = logits[..., start:end]
    return masked
