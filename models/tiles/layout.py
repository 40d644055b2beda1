"""One grid of tiles for everything that works on an image in parts: in latent cells, and in the image's pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from .grid import Box, TileGrid, Wrap

CELL = 8
"""Pixels per latent cell."""


def require_tile(tile: int, overlap: int, align: int = 1) -> None:
    """Raise ValueError for a tile that cannot be laid, tile and overlap in pixels.

    That is one below `align` latent cells, or one whose overlap with its neighbour leaves no new pixels in it.
    """
    if tile < align * CELL:
        raise ValueError(f"The tile size must be at least {align * CELL} px (align {align}), got {tile} px.")
    if not 0 <= overlap < tile:
        raise ValueError(
            f"The overlap must be at least 0 and smaller than the tile size {tile} px, got {overlap} px. An eighth to "
            "a quarter of the tile is a good overlap."
        )


@dataclass(frozen=True)
class TileLayout:
    """Tiles over an image and its latent."""

    grid: TileGrid
    """In latent cells of CELL x CELL pixels."""

    @classmethod
    def fitted(
        cls, height: int, width: int, tile: int, overlap: int, align: int = 2, wrap: Wrap = "none"
    ) -> TileLayout:
        """Tiles over an image of `height` x `width`; all but align in pixels, align in latent cells.

        Pixels beyond the last whole latent cell have no latent, as in the host's VAE Encode. Raises ValueError for an
        image smaller than a cell, a tile smaller than `align`, and an overlap that leaves no new pixels in a tile.
        """
        if height < CELL or width < CELL:
            raise ValueError(f"An image of {width}x{height} pixels is smaller than one latent cell ({CELL}x{CELL}).")
        require_tile(tile, overlap, align)
        size, side, shared = (height // CELL, width // CELL), tile // CELL, overlap // CELL
        return cls(TileGrid.fitted(size, (side, side), (shared, shared), align, wrap))

    def __len__(self) -> int:
        return len(self.grid)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of what the tiles cover."""
        return self.grid.height * CELL, self.grid.width * CELL

    @property
    def pixel_boxes(self) -> list[Box]:
        return [Box(box.top * CELL, box.left * CELL, box.height * CELL, box.width * CELL) for box in self.grid.boxes]

    def tiles(self, image: Tensor, node: str) -> Iterator[Tensor]:
        """The tiles' crops `[B, h, w, C]` of an image `[B, H, W, C]`, row by row.

        Raises ValueError, naming `node`, for an image of another size.
        """
        height, width = self.image_size
        if (image.shape[1] // CELL, image.shape[2] // CELL) != (self.grid.height, self.grid.width):
            raise ValueError(
                f"{node}: the tile grid is for an image of {width}x{height} pixels, this one has "
                f"{image.shape[2]}x{image.shape[1]}. Give Tile Grid the image at the size of the result."
            )
        for box in self.pixel_boxes:
            yield box.crop(image.movedim(-1, 1)[..., :height, :width]).movedim(1, -1)
