"""What a restored tile is measured by, against the low-quality image it was restored from. Ours: no paper states it.

Only what a low-quality image is right about is compared: its mean colour and its low frequencies. Detail may be new.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..image import gaussian_blur
from ..tiles.grid import Box, TileGrid
from .cells import tile_cells, tile_cores

LEVELS = 255.0
LUMA = (0.299, 0.587, 0.114)

STRUCTURE_FLOOR = 8.0
"""Levels of structure that any tile is granted: below, differences are noise."""

NOISE_SHARE = 0.35
"""Of an image's finest detail, what noise of that strength leaves among its shapes; a photo's own are far more."""

LEAST_SHAPES = 6.0
"""Levels of shapes, less noise, below which a low-quality tile shows none."""

SHARP_FLOOR = 2.0
"""Levels of detail that any tile is granted."""

SEAM_FLOOR = 1.0
"""Levels by which neighbouring lines of pixels may differ anywhere."""

SEAM_REACH = 6
"""Lines on either side of a border that it is compared with."""


@dataclass(frozen=True)
class Measures:
    """Of every tile, `[N]` float64 on the CPU; NaN where a tile has values that are not numbers."""

    finite: Tensor
    """Share of values that are numbers, 0..1."""
    contrast: Tensor
    """Standard deviation of the restored tile, levels of 255."""
    lq_contrast: Tensor
    """The same of the low-passed low-quality tile."""
    color: Tensor
    """Largest difference of a channel's mean, levels of 255."""
    structure: Tensor
    """What differs between the low-passed tiles, less their means, in parts of the low-quality tile's structure."""
    agreement: Tensor
    """Share of the low-quality tile's shapes that the restored tile has at the same place: 1 for all, 0 for others. NaN
    where there are none to speak of."""
    sharpness: Tensor
    """Natural logarithm of the restored tile's fine detail in parts of the low-quality tile's medium detail."""
    seam: Tensor
    """How much the pixels step at the tile's borders, in parts of how much they step beside them; 0 without borders."""


def low_pass_sigma(scale: float, side: int) -> float:
    """Pixels of the result over which a low-quality image is believed: two of its own pixels, 1/64 of a tile at least.

    At most an eighth of a tile.
    """
    return min(max(2.0 * scale, side / 64, 2.0), side / 8)


def blur(image: Tensor, sigma: float) -> Tensor:
    """`[C, H, W]` low-passed."""
    return gaussian_blur(image[None], sigma, math.ceil(3 * sigma))[0]


def rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


def spread(values: Tensor) -> Tensor:
    """Root mean square of `[C, H, W]` less each channel's mean."""
    return rms(values - values.mean(dim=(-1, -2), keepdim=True))


def luma(image: Tensor) -> Tensor:
    """`[3, H, W]` -> `[1, H, W]`."""
    return torch.tensordot(torch.tensor(LUMA).to(image), image, dims=1)[None]


def measure_tiles(restored: Tensor, lq: Tensor, grid: TileGrid, scale: float) -> Measures:
    """Measures of the tiles of a restored image `[3, H, W]` against `lq` `[3, H, W]`, enlarged to its size; 0..1.

    grid: in pixels of the result. scale: how many times larger it is than the low-quality image. Works tile by tile,
    so that memory does not grow with the image.
    """
    sigma = low_pass_sigma(scale, min(grid.tile_height, grid.tile_width))
    places = zip(grid.boxes, tile_cells(grid), tile_cores(grid), strict=True)
    rows = [measure_tile(restored, lq, *place, sigma) for place in places]
    columns = [*torch.tensor(rows, dtype=torch.float64).unbind(1), seams(restored, lq, grid)]
    return Measures(*columns)


def measure_tile(restored: Tensor, lq: Tensor, box: Box, cell: Box, core: Box, sigma: float) -> list[float]:
    """Of one tile, in the order of Measures, all but the seam."""
    tile, model = (box.crop(image).float() * LEVELS for image in (restored, lq))
    inner = Box(core.top - box.top, core.left - box.left, core.height, core.width)
    finite = float(cell.crop(restored).isfinite().float().mean())
    model_low = blur(model, sigma)
    lq_contrast = spread(inner.crop(model_low))
    if finite < 1:
        nan = math.nan
        return [finite, nan, float(lq_contrast), nan, nan, nan, nan]
    # Those of a neighbour's cell, which would spread.
    tile = torch.where(tile.isfinite(), tile, model)
    color = (inner.crop(tile) - inner.crop(model)).mean(dim=(-1, -2)).abs().max()
    residual = spread(inner.crop(blur(tile, sigma) - model_low))
    structure = residual / torch.hypot(lq_contrast, torch.tensor(STRUCTURE_FLOOR))
    grey, model_grey = luma(tile), luma(model)
    shapes, model_shapes = (inner.crop(blur(image, sigma / 2) - blur(image, 2 * sigma)) for image in (grey, model_grey))
    noise = inner.crop(model_grey - blur(model_grey, sigma / 2))
    fine = rms(inner.crop(grey - blur(grey, 1.5)))
    sharpness = torch.log((fine + SHARP_FLOOR) / (rms(model_shapes) + SHARP_FLOOR))
    values = (
        spread(inner.crop(tile)),
        lq_contrast,
        color,
        structure,
        agreement(shapes, model_shapes, noise),
        sharpness,
    )
    return [1.0, *(float(value) for value in values)]


def agreement(shapes: Tensor, model: Tensor, noise: Tensor) -> Tensor:
    """The regression of a tile's shapes on those of its low-quality tile, whose noise is none to be found again.

    cov(r, l) / (var(l) - var(noise in l)): noise is in the low-quality image alone, so that a good tile has 1 whether
    it kept the detail around the shapes, added to it or smoothed it.
    """
    own = model.square().mean() - (NOISE_SHARE * rms(noise)).square()
    return (shapes * model).mean() / own if own > LEAST_SHAPES**2 else torch.tensor(math.nan)


def seams(restored: Tensor, lq: Tensor, grid: TileGrid) -> Tensor:
    """Of every tile `[N]`: the mean over its borders inside the image of the step there in parts of those beside it."""
    ratios = [
        [step_ratio(restored, lq, box, axis, line) for axis, line in inner_borders(box, grid)] for box in grid.boxes
    ]
    means = [sum(found) / len(found) if found else 0.0 for found in ratios]
    return torch.tensor(means, dtype=torch.float64)


def inner_borders(box: Box, grid: TileGrid) -> list[tuple[int, int]]:
    """(axis, line) of a tile's borders that lie inside the image: between the lines `line` - 1 and `line`."""
    ends = [(-2, box.top, grid.height), (-2, box.top + box.height, grid.height)]
    ends += [(-1, box.left, grid.width), (-1, box.left + box.width, grid.width)]
    return [(axis, line) for axis, line, length in ends if 0 < line < length]


def step_ratio(restored: Tensor, lq: Tensor, box: Box, axis: int, line: int) -> float:
    """The median step across a border, less what the low-quality image steps there, in parts of the steps beside it.

    The median over the pixels of the border: an edge of the picture crosses some of them, a seam all.
    """
    length = restored.shape[axis]
    first, last = max(line - SEAM_REACH, 0), min(line + SEAM_REACH, length)
    strip = (
        Box(first, box.left, last - first, box.width) if axis == -2 else Box(box.top, first, box.height, last - first)
    )
    difference = (strip.crop(restored).float() - strip.crop(lq).float()) * LEVELS
    steps = difference.diff(dim=axis).abs().mean(dim=0)
    medians = steps.nan_to_num(0).median(dim=1 if axis == -2 else 0).values
    at = line - 1 - first
    beside = torch.cat([medians[:at], medians[at + 1 :]])
    if not len(beside):
        return 0.0
    return float((medians[at] + SEAM_FLOOR) / (beside.mean() + SEAM_FLOOR))
