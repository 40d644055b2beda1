"""Which tiles of a restored image are bad, and why. Ours: the limits were chosen on photos, and measured on others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..tiles.grid import Box, TileGrid
from .cells import neighbours, tile_cells
from .measures import Measures, measure_tiles

Kind = Literal["not finite", "constant", "color", "structure", "agreement", "blurred", "noisy", "seam"]

CONSTANT = 1.0
"""Levels of contrast below which a restored tile says nothing."""

CONSTANT_LQ = 5.0
"""Levels of contrast above which its low-quality tile does."""

OUTLIER = 4.0
"""Times the middle tile's difference: the same restoration of the same input, so that tiles are alike."""

ALONE = 0.6
"""Of the agreement asked for: heavy noise and blur may leave so little in every tile."""

OVERSHADOWED = 2.0
"""Times worse a neighbour is, for a tile not to be blamed for what averaging carried over from it: see judge."""

CLEARLY_BAD = 1.5
"""Times its limit, what a tile is always blamed for."""

LEAST_NEIGHBOURS = 3
"""Around a tile, before its detail is compared with theirs: a tile in the corner of two by two has as many."""


@dataclass(frozen=True)
class Thresholds:
    """A tile is bad above any of these, of agreement below; 0 turns one off. What they are of: see Measures.

    Raises ValueError for a negative one and for a seam or detail ratio between 0 and 1.
    """

    color: float = 24.0
    """Levels of 255 by which a channel's mean may differ."""
    structure: float = 0.75
    """Difference of the low frequencies in parts of the low-quality tile's own. Half of it where that is OUTLIER times
    what it is in the middle one of all tiles."""
    agreement: float = 0.65
    """Least share of the low-quality tile's shapes, in parts of what the middle one of all tiles has; ALONE times as
    much whatever the others have."""
    blurred: float = 4.0
    """How many times less detail a tile may have than the middle one of its neighbours, for its content."""
    noisy: float = 8.0
    """How many times more."""
    seam: float = 3.0
    """How many times more the pixels may step at a tile's borders than beside them."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 0 or not math.isfinite(value):
                raise ValueError(f"The threshold {name} is {value:g}; it must be 0 (off) or more.")
        for name in ("blurred", "noisy", "seam"):
            if 0 < getattr(self, name) <= 1:
                raise ValueError(f"The threshold {name} is a ratio: 0 (off) or above 1, got {getattr(self, name):g}.")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a tile."""

    kind: Kind
    value: float
    limit: float

    @property
    def excess(self) -> float:
        """How many times worse than its limit."""
        if self.kind == "agreement":
            return (1 - self.value) / (1 - self.limit)
        return self.value / self.limit if self.limit and self.kind != "constant" else math.inf

    def __str__(self) -> str:
        return SAID[self.kind].format(value=self.value, limit=self.limit)


SAID: dict[Kind, str] = {
    "not finite": "{value:.1%} of its values are not numbers",
    "constant": "one flat colour, where the input shows something (contrast {value:.1f}, at least {limit:.1f})",
    "color": "colour {value:.0f} levels off the input's (limit {limit:g})",
    "agreement": "does not have the input's shapes where they are (share {value:.2f}, at least {limit:.2f})",
    "structure": "shows something else than the input (difference {value:.2f}, limit {limit:g})",
    "blurred": "{value:.1f} times less detail than its neighbours (limit {limit:g})",
    "noisy": "{value:.1f} times more detail than its neighbours (limit {limit:g})",
    "seam": "a seam at its borders ({value:.1f} times the steps beside them, limit {limit:g})",
}


@dataclass(frozen=True)
class TileCheck:
    """What was found in one image."""

    grid: TileGrid
    """In pixels."""
    faults: Sequence[Sequence[Fault]]
    """Of each tile, row by row; empty for a good one."""

    @property
    def bad(self) -> list[int]:
        """Numbers of the bad tiles, counted from 0."""
        return [index for index, found in enumerate(self.faults) if found]

    def mask(self, height: int, width: int) -> Tensor:
        """`[height, width]` float32: 1 in the cells of bad tiles."""
        mask = torch.zeros(self.grid.height, self.grid.width)
        cells = tile_cells(self.grid)
        for index in self.bad:
            cells[index].crop(mask).fill_(1)
        return mask[:height, :width]

    def report(self) -> str:
        """A line for each bad tile, numbered from 1 as in Tile Grid; one line where none is bad."""
        if not self.bad:
            return f"All {len(self.grid)} tiles are good."
        lines = [f"{len(self.bad)} of {len(self.grid)} tiles are bad:"]
        boxes = self.grid.boxes
        for index in self.bad:
            reasons = "; ".join(map(str, self.faults[index]))
            lines.append(f"tile {index + 1} ({place(boxes[index])}): {reasons}")
        return "\n".join(lines)


def place(box: Box) -> str:
    return f"x {box.left}, y {box.top}, {box.width}x{box.height}"


def check_tiles(
    restored: Tensor, lq: Tensor, grid: TileGrid, scale: float, thresholds: Thresholds | None = None
) -> TileCheck:
    """Judge the tiles of one restored image `[H, W, 3]` against `lq` `[H, W, 3]`, enlarged to its size; both 0..1.

    grid: in pixels, over the image or over it padded to whole patches. scale: how many times larger the result is than
    the low-quality image. Values that are not numbers are a fault of their tile. Raises ValueError when sizes differ.
    """
    if restored.shape != lq.shape:
        raise ValueError(f"The restored image is {list(restored.shape)} and its low-quality image {list(lq.shape)}.")
    measures = measure_tiles(fitted(restored, grid), fitted(lq, grid), grid, scale)
    return TileCheck(grid, judge(measures, grid, thresholds or Thresholds()))


def fitted(image: Tensor, grid: TileGrid) -> Tensor:
    """`[H, W, 3]` -> `[3, H, W]`, its right and bottom border repeated up to the grid's size."""
    short = grid.height - image.shape[0], grid.width - image.shape[1]
    if min(short) < 0:
        raise ValueError(
            f"The tiles lie over {grid.width}x{grid.height}, the image is {image.shape[1]}x{image.shape[0]}."
        )
    if any(short):
        rows = torch.arange(grid.height).clamp(max=image.shape[0] - 1)
        columns = torch.arange(grid.width).clamp(max=image.shape[1] - 1)
        image = image[rows.to(image.device)][:, columns.to(image.device)]
    return image.movedim(-1, 0)


def judge(measures: Measures, grid: TileGrid, limits: Thresholds) -> list[list[Fault]]:
    """The faults of each tile: its own first, then those beside its neighbours, of which bad ones do not count.

    Of tiles side by side the far worse one is blamed: its share of what they have in common, and the filters, carry it
    into the other. Where that one is bad by itself it is found once its neighbour is mended.
    """
    usual = Usual(middle(measures.structure), middle(measures.agreement))
    faults = [own_faults(measures, index, limits, usual) for index in range(len(grid))]
    excess = [max((fault.excess for fault in found), default=0.0) for found in faults]
    for index in range(len(grid)):
        worst = max((excess[other] for other in neighbours(grid, index)), default=0.0)
        if excess[index] < CLEARLY_BAD and worst >= OVERSHADOWED * excess[index]:
            faults[index] = []
    good = [not found for found in faults]
    for index in range(len(grid)):
        around = neighbours(grid, index)
        compared = [float(measures.sharpness[other]) for other in around if good[other]]
        if good[index] and len(compared) >= LEAST_NEIGHBOURS:
            difference = float(measures.sharpness[index]) - float(torch.tensor(compared).median())
            for kind, limit, value in (
                ("blurred", limits.blurred, math.exp(-difference)),
                ("noisy", limits.noisy, math.exp(difference)),
            ):
                if limit and value > limit:
                    faults[index].append(Fault(kind, value, limit))  # type: ignore[arg-type]
    good = [not found for found in faults]
    for index in range(len(grid)):
        # What a good tile's border runs through may be a bad one's picture.
        seam = float(measures.seam[index])
        if limits.seam and good[index] and seam > limits.seam and all(good[other] for other in neighbours(grid, index)):
            faults[index].append(Fault("seam", seam, limits.seam))
    return faults


@dataclass(frozen=True)
class Usual:
    """What the middle one of all tiles has; NaN where none was measured."""

    structure: float
    agreement: float


def middle(values: Tensor) -> float:
    """The median of those that are numbers."""
    return float(values.nanmedian())


def own_faults(measures: Measures, index: int, limits: Thresholds, usual: Usual) -> list[Fault]:
    """What is wrong with a tile whatever its neighbours are."""
    finite = float(measures.finite[index])
    if finite < 1:
        return [Fault("not finite", 1 - finite, 0.0)]
    found = []
    contrast, lq_contrast = float(measures.contrast[index]), float(measures.lq_contrast[index])
    if contrast < CONSTANT and lq_contrast > CONSTANT_LQ:
        found.append(Fault("constant", contrast, CONSTANT))
    color, structure, shapes = (
        float(values[index]) for values in (measures.color, measures.structure, measures.agreement)
    )
    if limits.color and color > limits.color:
        found.append(Fault("color", color, limits.color))
    most = min(limits.structure, max(limits.structure / 2, OUTLIER * usual.structure))
    if limits.structure and structure > most:
        found.append(Fault("structure", structure, most))
    least = limits.agreement * max(min(usual.agreement, 1.0), ALONE) if limits.agreement else -math.inf
    if shapes < least:
        found.append(Fault("agreement", shapes, least))
    return found
