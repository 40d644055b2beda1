"""A tile restored anew, laid over the image that is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tiles.grid import Box, TileGrid
from ..tiles.weights import Weights, tile_weight

LEAST_RING = 8
"""Of a tile: where tiles share less, so much around a tile is blended."""

FLAT = 1e-3
"""Weights that fall by less than this over the ring do not blend."""


def rings(grid: TileGrid) -> tuple[int, int]:
    """(down, across): how far what is restored anew reaches around a tile, in the grid's cells and multiples of align.

    What neighbours share, and an eighth of the tile at least.
    """
    sides = (grid.tile_height, grid.tile_width)
    wanted = (max(shared, side // LEAST_RING) for shared, side in zip(grid.overlaps, sides, strict=True))
    down, across = (-(-ring // grid.align) * grid.align for ring in wanted)
    return down, across


def window_of(grid: TileGrid, index: int) -> Box:
    """A tile with the ring around it, inside the field: what is restored anew in its place."""
    box, (down, across) = grid.boxes[index], rings(grid)
    top, left = max(box.top - down, 0), max(box.left - across, 0)
    bottom = min(box.top + box.height + down, grid.height)
    right = min(box.left + box.width + across, grid.width)
    return Box(top, left, bottom - top, right - left)


def part_grid(grid: TileGrid, window: Box) -> TileGrid:
    """Tiles of the same size over a part of the field, counted from its corner."""
    height, width = min(grid.tile_height, window.height), min(grid.tile_width, window.width)
    return TileGrid(window.height, window.width, height, width, grid.overlap, grid.align)


def nearest_tiles(grid: TileGrid, part: TileGrid, window: Box) -> list[int]:
    """For each tile of `part`, which lies over `window` of the field, the number of the grid's nearest tile."""

    def middle(box: Box, top: int = 0, left: int = 0) -> tuple[float, float]:
        return top + box.top + box.height / 2, left + box.left + box.width / 2

    def distance(number: int, point: tuple[float, float]) -> float:
        return sum((a - b) ** 2 for a, b in zip(middle(boxes[number]), point, strict=True))

    boxes = grid.boxes
    points = [middle(box, window.top, window.left) for box in part.boxes]
    return [min(range(len(boxes)), key=lambda number: distance(number, point)) for point in points]


def ramp(kind: Weights, tile: int, ring: int) -> Tensor:
    """How much the new picture counts over the ring, `[ring]` float32 from the tile outwards, within 0..1.

    The share that a tile's weight of this kind has of it and its neighbour's where they share `ring` cells, stretched
    to end at 0. Uniform weights, of which each has one half, go down in a straight line instead.
    """
    own = tile_weight(kind, 1, max(tile, ring))[0, 0, 0, -ring:]
    share = own / (own + own.flip(0))
    if float(share[0] - share[-1]) < FLAT:
        return torch.arange(ring, 0, -1) / (ring + 1)
    return (share - share[-1]) / (1 - share[-1])


def profile(start: int, length: int, tile_start: int, tile: int, kind: Weights) -> Tensor:
    """Along one axis of a window: 1 over the tile, falling over the ring on either side of it."""
    before, after = tile_start - start, start + length - tile_start - tile
    out = torch.ones(length)
    if before:
        out[:before] = ramp(kind, tile, before).flip(0)
    if after:
        out[length - after :] = ramp(kind, tile, after)
    return out


def lay_over(kept: Tensor, new: Tensor, grid: TileGrid, index: int, kind: Weights) -> None:
    """Put a tile restored anew into `kept` `[..., H, W]` in place; everything outside its window stays as it is.

    new: `[..., h, w]` of the tile's window. The tile itself is all new, so that nothing of the bad one is left, and the
    ring around it goes over into what is kept with the tile's weights.
    """
    window, box = window_of(grid, index), grid.boxes[index]
    down = profile(window.top, window.height, box.top, box.height, kind)
    across = profile(window.left, window.width, box.left, box.width, kind)
    weight = (down[:, None] * across[None, :]).to(kept)
    place = window.crop(kept)
    mixed = torch.where(place.isfinite(), place + weight * (new.to(kept) - place), new.to(kept))
    # Exactly the new one, not one rounding off.
    place.copy_(torch.where(weight == 1, new.to(kept), mixed))
