"""Where in an answer a token stands: in the text, in the two sizes, or in the token grid of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .vocabulary import BOI, EOI, MAX_SIDE, NL, PATCH_TOKENS, SIZE_BASE, size_id

MAX_PATCHES = 256
"""Largest area of an image in patches: 512 x 512 pixels, or as much in another aspect ratio."""


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


@dataclass(frozen=True)
class Grid:
    """The token grid of an image of `height` x `width` patches."""

    height: int
    width: int

    @property
    def rows(self) -> int:
        return self.height * PATCH_TOKENS

    @property
    def columns(self) -> int:
        return self.width * PATCH_TOKENS

    @property
    def tokens(self) -> int:
        """Image tokens, without row ends."""
        return self.rows * self.columns

    @property
    def length(self) -> int:
        """Tokens after the two sizes: rows with their ends, and EOI."""
        return self.rows * (self.columns + 1) + 1

    def slot(self, n: int) -> Slot:
        """The n-th token after the sizes, counted from 1."""
        if n % (self.columns + 1) == 0:
            return Slot.NEWLINE
        return Slot.END if n == self.length else Slot.IMAGE

    def sizes(self) -> list[int]:
        """The two size tokens. Raises ValueError outside the rule."""
        check_patches(self.height, self.width)
        return [size_id(self.height), size_id(self.width)]


def check_patches(height: int, width: int) -> None:
    """Raises ValueError unless both sides are 1 to 32 patches and the area at most 256."""
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE) or height * width > MAX_PATCHES:
        raise ValueError(
            f"an image of {height} x {width} patches (height x width, 32 pixels each): sides must be 1 to {MAX_SIDE} "
            f"and the area at most {MAX_PATCHES} patches"
        )


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
    return grid.slot(n), grid, n
