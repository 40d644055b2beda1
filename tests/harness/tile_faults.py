"""What can go wrong with one tile of a restoration, made on purpose."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Faulty = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(the tile `[3, h, w]`, another tile of the image, random numbers) -> the faulty tile."""

CAST = (0.15, 0.0, -0.15)


def noise(tile: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(tile.shape, generator=generator)


def black(tile: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    return torch.zeros_like(tile)


def blurred(tile: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """By a box of a quarter of the tile, twice: no shape is left."""
    return box_blur(tile, tile.shape[-1] // 4)


def half_blurred(tile: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """By a box of an eighth of the tile, twice."""
    return box_blur(tile, tile.shape[-1] // 8)


def box_blur(tile: Tensor, side: int) -> Tensor:
    side = max(side // 2 * 2 + 1, 3)
    for _ in range(2):
        padded = F.pad(tile[None], [side // 2] * 4, mode="reflect")
        tile = F.avg_pool2d(padded, side, 1)[0]
    return tile


def shifted(tile: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """By an eighth of the tile along both axes."""
    by = tile.shape[-1] // 8
    return torch.roll(tile, (by, by), (-1, -2))


def cast(tile: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    return (tile + torch.tensor(CAST)[:, None, None]).clamp(0, 1)


def swapped(tile: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    return other.clone()


def not_a_number(tile: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    return torch.full_like(tile, torch.nan)


FAULTS: dict[str, Faulty] = {
    "noise": noise,
    "black": black,
    "blurred": blurred,
    "half blurred": half_blurred,
    "shifted": shifted,
    "colour-cast": cast,
    "swapped": swapped,
    "NaN": not_a_number,
}


def inject(image: Tensor, grid, index: int, fault: str, seed: int = 0) -> Tensor:
    """A copy of an image `[H, W, 3]` one tile of which is faulty, blended with its neighbours as merging tiles does.

    grid: a TileGrid in pixels. The other tile is the one half a grid away.
    """
    picture = image.movedim(-1, 0).clone()
    box, other = grid.boxes[index], grid.boxes[(index + len(grid) // 2) % len(grid)]
    tile = box.crop(picture)
    generator = torch.Generator().manual_seed(seed)
    faulty = FAULTS[fault](tile, other.crop(picture), generator)
    down, across = (
        share(start, side, length, overlap)
        for start, side, length, overlap in zip(
            (box.top, box.left), (box.height, box.width), (grid.height, grid.width), grid.overlaps, strict=True
        )
    )
    weight = down[:, None] * across[None, :]
    tile.copy_(torch.where(weight > 0, tile + weight * (faulty - tile), tile))
    return picture.movedim(0, -1).contiguous()


def share(start: int, side: int, length: int, overlap: int) -> Tensor:
    """Along one axis: a tile's share of what it and its neighbours say, falling in a line over what they share."""
    out = torch.ones(side)
    if overlap:
        line = torch.arange(1, overlap + 1) / (overlap + 1)
        if start > 0:
            out[:overlap] = line
        if start + side < length:
            out[-overlap:] = line.flip(0)
    return out
