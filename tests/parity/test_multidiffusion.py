"""Tile boxes, blending weights and merges against the reference."""

from __future__ import annotations

import pytest
import torch

from parity import golden
from realisr.models.tiles.grid import TileGrid
from realisr.models.tiles.merge import merge_tiles
from realisr.models.tiles.weights import tile_weight

TOLERANCE = 2e-6


def grid_of(case) -> TileGrid:
    """The grid of a case; merges name no alignment, FLUX's 2 x 2 packing is meant."""
    params = case.parameters
    size, tile, overlap = (tuple(params[key]) for key in ("latent_hw", "tile_hw", "overlap_hw"))
    return TileGrid.fitted(size, tile, overlap, params.get("align", 2))


CASES = golden.cases("multidiffusion", "flux")


@pytest.mark.parametrize("case", CASES)
def test_boxes(case):
    grid = grid_of(case)
    expected = case["out/boxes" if "out/boxes" in case else "in/boxes"]
    boxes = [(box.top, box.top + box.height, box.left, box.left + box.width) for box in grid.boxes]
    assert boxes == [tuple(row) for row in expected.tolist()]
    assert len(grid) == len(boxes) == case.parameters.get("count", len(boxes))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("case", golden.cases("multidiffusion", "flux", lambda case: "in/v" in case))
def test_merge(case, batch):
    grid, velocities = grid_of(case), case["in/v"]
    weight = tile_weight(case.parameters["weights"], grid.tile_height, grid.tile_width)
    golden.assert_within(weight[0, 0], case["mid/weight"], TOLERANCE, "weight")
    field = torch.empty(*velocities.shape[1:-2], grid.height, grid.width)
    merged = merge_tiles(grid, field, lambda first, boxes: velocities[first : first + len(boxes)], batch, weight)
    golden.assert_within(merged, case["out/merged"], TOLERANCE, "merged")
