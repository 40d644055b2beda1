"""The token grid of an image, as it stands in an answer: BOI, two sizes, rows that each end in NL, EOI."""

from __future__ import annotations

from dataclasses import dataclass

from .vocabulary import BOI, MAX_SIDE, PATCH_TOKENS, size_id

MAX_PATCHES = 256
"""Largest area of an image in patches: 512 x 512 pixels, or as much in another aspect ratio."""


@dataclass(frozen=True)
class Grid:
    """An image of `height` x `width` patches of 32 pixels.

    Raises ValueError unless both sides are 1 to 32 patches and the area is at most 256.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if not (1 <= min(self.height, self.width) <= max(self.height, self.width) <= MAX_SIDE) or (
            self.height * self.width > MAX_PATCHES
        ):
            raise ValueError(
                f"an image of {self.height} x {self.width} patches (height x width, 32 pixels each): sides must be "
                f"1 to {MAX_SIDE} and the area at most {MAX_PATCHES} patches"
            )

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

    def opening(self) -> list[int]:
        """The tokens before the first row: BOI, height, width."""
        return [BOI, size_id(self.height), size_id(self.width)]
