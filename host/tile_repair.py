"""Restoring bad tiles of a finished image again: what the whole-method nodes share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.model_management
import torch
from torch import Tensor

from ..models.tile_check.blend import lay_over, window_of
from ..models.tile_check.check import Thresholds, TileCheck, check_tiles, fitted
from ..models.tiles.grid import Box, TileGrid, Wrap
from ..models.tiles.weights import Weights
from .images import require_finite
from .progress import NodeBar, show_on_node

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TileRepair:
    """What happens to bad tiles. Raises ValueError for less than one round."""

    rounds: int = 2
    """Times that tiles still bad are restored again, at most."""
    less_creative: bool = False
    """Each time a step closer to the input; otherwise only with another seed."""
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(f"Bad tiles are restored again in at least 1 round, got {self.rounds}.")


@dataclass(frozen=True)
class Pictures:
    """One restored image and what it came from, both `[1, H, W, 3]` in 0..1 at the size of the result."""

    restored: Tensor
    lq: Tensor
    scale: float
    """How many times larger the result is than the low-quality image."""


RestoreWindow = Callable[[Box, Tensor, int], Tensor]
"""(place, low-quality picture `[1, h, w, 3]` of it, number of the round from 1) -> `[1, h, w, 3]`, all in pixels."""


def require_no_repair(repair: bool, wrap: Wrap, node: str) -> None:
    """Raises ValueError, naming `node`, where bad tiles were to be mended in a picture that goes on."""
    if repair and wrap != "none":
        raise ValueError(f"{node}: tile_check does not look around the edge. Set tile_check to off, or wrap to none.")


def scale_of(image: Tensor, width: int, height: int) -> float:
    """How many times larger a result of that size is than images `[B, h, w, C]`."""
    return max(height / image.shape[1], width / image.shape[2])


def whole(height: int, width: int) -> TileGrid:
    """A grid of one tile."""
    return TileGrid(height, width, height, width, 0)


def repair_tiles(
    pictures: Pictures, grid: TileGrid, weights: Weights, repair: TileRepair, again: RestoreWindow, node: str
) -> Tensor:
    """The image with its bad tiles restored again, until all are good or the rounds are used up.

    grid: in pixels, over the image or over it padded to whole patches. weights: of the method's tiles. Pixels outside
    of the windows of bad tiles (a tile and the ring it is blended over) stay as they are, to the bit. What was found is
    shown on the node and logged. Raises ValueError where values that are not numbers are left in the end.
    """
    lq = pictures.lq[0].to(pictures.restored)
    check = check_tiles(pictures.restored[0], lq, grid, pictures.scale, repair.thresholds)
    first = check
    if not check.bad:
        tell(node, first, check, 0)
        return pictures.restored
    height, width = pictures.restored.shape[1:3]
    kept, model = fitted(pictures.restored[0], grid).clone(), fitted(lq, grid)
    done, bar = 0, NodeBar(repair.rounds)
    for done in range(1, repair.rounds + 1):
        for count, index in enumerate(check.bad, start=1):
            comfy.model_management.throw_exception_if_processing_interrupted()
            show_on_node(f"tile {index + 1} again ({count} of {len(check.bad)} bad ones) · round {done}")
            window = window_of(grid, index)
            with bar.stage(1 / len(check.bad)):
                made = again(window, window.crop(model).movedim(0, -1)[None], done)
            lay_over(kept, made[0].movedim(-1, 0), grid, index, weights)
        check = check_tiles(kept[:, :height, :width].movedim(0, -1), lq, grid, pictures.scale, repair.thresholds)
        if not check.bad:
            break
    tell(node, first, check, done)
    require_finite(kept, f"The diffusion model of {node}, in some tiles and in every round,")
    return kept[:, :height, :width].movedim(0, -1)[None].contiguous()


def tell(node: str, first: TileCheck, last: TileCheck, rounds: int) -> None:
    """Say what was bad, and what still is."""
    if not first.bad:
        show_on_node(f"Tiles: all {len(first.grid)} good")
        return
    left = f"{len(last.bad)} still bad" if last.bad else "all good now"
    summary = f"Tiles: {len(first.bad)} of {len(first.grid)} were bad; restored again in {rounds} round(s), {left}"
    show_on_node(summary)
    log.warning("RealISR: %s: %s\n%s", node, summary, first.report())
    if last.bad:
        log.warning("RealISR: %s: after %d round(s): %s", node, rounds, last.report())


def without_nan(latent: Tensor, stand_in: Tensor, redo: bool = False) -> tuple[Tensor, Tensor | None]:
    """A latent `[1, C, h, w]` with `stand_in`'s cells where its own are not numbers, and where that is `[h, w]`.

    So the rest can be decoded, and those tiles be found and restored again. None where all cells are numbers. One in
    which none is comes back as it is, for the error that says so; not in a redo, which may have another round.
    """
    holes = ~latent.isfinite().all(dim=1)[0]
    if not holes.any() or (holes.all() and not redo):
        return latent, None
    return torch.where(holes, stand_in.to(latent), latent), holes


def with_nan(image: Tensor, holes: Tensor | None, cell: int) -> Tensor:
    """An image `[1, H, W, 3]` that is not a number where its latent, of `cell` pixels a cell, was not."""
    if holes is None:
        return image
    height, width = image.shape[1:3]
    lost = holes.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[:height, :width]
    return image.masked_fill(lost.to(image.device)[None, ..., None], torch.nan)
