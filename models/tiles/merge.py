"""Predictions on tiles, merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .grid import Box, TileGrid
from .weights import tile_weight


def merge_tiles(
    grid: TileGrid,
    field: Tensor,
    predict: Callable[[int, Sequence[Box]], Sequence[Tensor]],
    batch: int = 1,
    weight: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Weighted mean of per-tile predictions, `[..., H, W]` float32, shaped like `field`.

    `predict(first, boxes)` returns one `[..., tile_height, tile_width]` per box, for at most `batch` boxes; `first` is
    the index of boxes[0] in the grid. This is the MultiDiffusion quotient sum(g * v) / sum(g). weight: g,
    `[1, 1, tile_height, tile_width]` in float32 on the field's device (see weights.tile_weight); None for the narrow
    Gaussian. weights: sum(g), of `sum_of_weights`, for callers that merge the same tiles again and again.
    """
    if weight is None:
        weight = tile_weight("narrow gaussian", grid.tile_height, grid.tile_width, field.device)
    total = torch.zeros(field.shape, dtype=torch.float32, device=field.device)
    if weights is None:
        weights = sum_of_weights(grid, weight)
    for first, boxes in grid.batches(batch):
        for box, prediction in zip(boxes, predict(first, boxes), strict=True):
            box.add_to(total, prediction.float() * weight)
    return total.div_(weights)


def sum_of_weights(grid: TileGrid, weight: Tensor) -> Tensor:
    """sum(g) of all tiles' weights g `[1, 1, tile_height, tile_width]`, `[1, 1, H, W]` in float32."""
    weights = torch.zeros((1, 1, grid.height, grid.width), dtype=torch.float32, device=weight.device)
    for box in grid.boxes:
        box.add_to(weights, weight)
    return weights
