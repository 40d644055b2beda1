"""One grid of tiles for everything that works on an image in parts: in latent cells, and in the image's pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .tiling import Box, TileGrid

CELL = 8
"""Pixels per latent cell."""

COLORS = ((255, 99, 71), (64, 160, 255), (80, 200, 120), (250, 200, 60))
"""Of tile borders, so that neighbours differ in both directions."""


def require_tile(tile: int, overlap: int, align: int) -> None:
    """Raise ValueError for a tile below `align` cells, or an overlap that leaves no new pixels in a tile."""
    if tile < align * CELL:
        raise ValueError(f"The tile size must be at least {align * CELL} px (align {align}), got {tile} px.")
    if not 0 <= overlap < tile:
        raise ValueError(
            f"The overlap must be at least 0 and smaller than the tile size {tile} px, got {overlap} px. A quarter of "
            "the tile is a good overlap."
        )


@dataclass(frozen=True)
class TileLayout:
    """grid: the tiles, in latent cells of CELL x CELL pixels."""

    grid: TileGrid

    @classmethod
    def fitted(cls, height: int, width: int, tile: int, overlap: int, align: int = 2) -> TileLayout:
        """Tiles over an image of `height` x `width`; all but align in pixels, align in latent cells.

        Pixels beyond the last whole latent cell have no latent, as in the host's VAE Encode. Raises ValueError for an
        image smaller than a cell, a tile smaller than `align`, and an overlap that leaves no new pixels in a tile.
        """
        if height < CELL or width < CELL:
            raise ValueError(f"An image of {width}x{height} pixels is smaller than one latent cell ({CELL}x{CELL}).")
        require_tile(tile, overlap, align)
        size, side, shared = (height // CELL, width // CELL), tile // CELL, overlap // CELL
        return cls(TileGrid.fitted(size, (side, side), (shared, shared), align))

    def __len__(self) -> int:
        return len(self.grid)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of what the tiles cover."""
        return self.grid.height * CELL, self.grid.width * CELL

    @property
    def pixel_boxes(self) -> list[Box]:
        return [Box(box.top * CELL, box.left * CELL, box.height * CELL, box.width * CELL) for box in self.grid.boxes]

    def require_latent(self, latent: Tensor, node: str) -> None:
        """Raise ValueError unless `latent` `[..., H, W]` is what the tiles lie over."""
        found, expected = tuple(latent.shape[-2:]), (self.grid.height, self.grid.width)
        if found != expected:
            raise ValueError(
                f"{node}: the tile grid is for a latent of {expected[0]}x{expected[1]} cells (height x width), this "
                f"one has {found[0]}x{found[1]}. Give Tile Grid the image or latent at the size of the result."
            )

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
            yield image[:, box.top : box.top + box.height, box.left : box.left + box.width]


def draw_tiles(layout: TileLayout, image: Tensor | None = None, longest: int = 1536) -> Tensor:
    """The tiles with their numbers, `[1, h, w, 3]` in 0..1, over the first of `image` `[B, H, W, C]` or over grey.

    Numbers count from 1, row by row. longest: the longer side in pixels, at most.
    """
    height, width = layout.image_size
    scale = min(1.0, longest / max(height, width))
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    if image is None:
        canvas = Image.new("RGB", size, (72, 72, 72))
    else:
        pixels = (image[0, :height, :width, :3].cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        canvas = Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
    brush = ImageDraw.Draw(canvas)
    columns = len(layout.grid.columns)
    for index, box in enumerate(layout.pixel_boxes):
        row, column = divmod(index, columns)
        color = COLORS[(row % 2) * 2 + column % 2]
        left, top = box.left * scale, box.top * scale
        right, bottom = (box.left + box.width) * scale - 1, (box.top + box.height) * scale - 1
        brush.rectangle((left, top, max(right, left), max(bottom, top)), outline=color, width=2)
        number_at(brush, ((left + right) / 2, (top + bottom) / 2), str(index + 1), min(box.width, box.height) * scale)
    return torch.from_numpy(np.asarray(canvas, np.float32) / 255)[None]


def number_at(brush: ImageDraw.ImageDraw, middle: tuple[float, float], text: str, side: float) -> None:
    """White on black, so that it can be read over any picture."""
    font = ImageFont.load_default(size=max(8.0, min(side / 5, 48.0)))
    brush.text(middle, text, fill="white", font=font, anchor="mm", stroke_width=2, stroke_fill="black")
