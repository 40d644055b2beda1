"""Tiles over a 2-D field: where they lie, how they are weighted, how predictions on them are merged.

Sizes are in whatever unit the field has (latent cells here); a tile never reaches outside the field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GAUSSIAN_VARIANCE = 0.01
"""Variance of the blending weight, in units of the squared tile side (as in MultiDiffusion samplers)."""


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First cells of the tiles along a side of `length`; the last tile is moved back to end at the border."""
    if length <= tile:
        return [0]
    starts = list(range(0, length - tile + 1, max(tile - overlap, 1)))
    if starts[-1] + tile < length:
        starts.append(length - tile)
    return starts


def gaussian_weight(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Blending weight of a tile, `[1, 1, height, width]` in float32.

    About 5e-6 at the middle of an edge and 3e-11 in a corner: accumulate in float32, half precision underflows.
    """

    def profile(size: int) -> Tensor:
        offset = (torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2) / size
        return torch.exp(-(offset**2) / (2 * GAUSSIAN_VARIANCE))

    return (profile(height)[:, None] * profile(width)[None, :])[None, None]


@dataclass(frozen=True)
class Box:
    """A tile's place: rows [top, top + height), columns [left, left + width)."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, field: Tensor, scale: int = 1) -> Tensor:
        """The tile's part of `[..., H, W]`; `scale` cells of `field` stand for one of the grid's."""
        rows = slice(self.top * scale, (self.top + self.height) * scale)
        columns = slice(self.left * scale, (self.left + self.width) * scale)
        return field[..., rows, columns]


@dataclass(frozen=True)
class TileGrid:
    """Equal tiles covering a field of `height` x `width` cells, row by row."""

    height: int
    width: int
    tile_height: int
    tile_width: int
    overlap: int

    @property
    def rows(self) -> list[int]:
        return tile_starts(self.height, self.tile_height, self.overlap)

    @property
    def columns(self) -> list[int]:
        return tile_starts(self.width, self.tile_width, self.overlap)

    @property
    def boxes(self) -> list[Box]:
        return [Box(top, left, self.tile_height, self.tile_width) for top in self.rows for left in self.columns]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def batches(self, size: int) -> Iterator[tuple[int, list[Box]]]:
        """Runs of at most `size` tiles: (index of the first, boxes)."""
        boxes = self.boxes
        for first in range(0, len(boxes), size):
            yield first, boxes[first : first + size]


def merge_tiles(
    grid: TileGrid,
    field: Tensor,
    predict: Callable[[int, Sequence[Box]], Sequence[Tensor]],
    batch: int = 1,
) -> Tensor:
    """Weighted mean of per-tile predictions, `[B, C, H, W]` float32, shaped like `field`.

    `predict(first, boxes)` returns one `[B, C, tile_height, tile_width]` per box; `first` is the index of
    boxes[0] in the grid. This is the MultiDiffusion quotient sum(g * v) / sum(g), with Gaussian g.
    """
    weight = gaussian_weight(grid.tile_height, grid.tile_width, field.device)
    total = torch.zeros(field.shape, dtype=torch.float32, device=field.device)
    weights = torch.zeros((1, 1, grid.height, grid.width), dtype=torch.float32, device=field.device)
    for first, boxes in grid.batches(batch):
        for box, prediction in zip(boxes, predict(first, boxes), strict=True):
            box.crop(total).add_(prediction.float() * weight)
            box.crop(weights).add_(weight)
    return total.div_(weights)


def vosr_tile_grid(
    height: int, width: int, tile_pixels: int, overlap_pixels: int, downscale: int = 8, patch: int = 2
) -> TileGrid | None:
    """The tile grid VOSR uses over a latent of `height` x `width`, or None when one tile holds all of it.

    Tiles are square, an even number of patches, and never larger than the shorter side; neighbours share at
    least an eighth of a tile. tile_pixels, overlap_pixels: in image pixels, `downscale` per latent cell.
    """
    tile = max(math.floor(tile_pixels / downscale) // patch * patch, patch)
    overlap = max(overlap_pixels // downscale, tile // 8)
    if height <= tile and width <= tile:
        return None
    tile = min(tile, height, width)
    return TileGrid(height, width, tile, tile, min(overlap, tile - 1))
