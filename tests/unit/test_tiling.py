"""Tiles cover the field, and merging them is the weighted mean it says it is."""

from __future__ import annotations

import pytest
import torch

from _pack import load_pack

load_pack()

from realisr.models.tiling import TileGrid, gaussian_weight, merge_tiles, vosr_tile_grid  # noqa: E402

GRIDS = [(24, 32, 16, 4), (16, 16, 16, 0), (17, 40, 16, 15), (65, 64, 64, 8), (33, 18, 8, 1), (10, 10, 4, 0)]


@pytest.mark.parametrize(("height", "width", "tile", "overlap"), GRIDS)
def test_tiles_cover_every_cell_and_stay_inside(height, width, tile, overlap):
    grid = TileGrid(height, width, tile, tile, overlap)
    seen = torch.zeros(height, width)
    for box in grid.boxes:
        assert 0 <= box.top <= height - tile and 0 <= box.left <= width - tile
        box.crop(seen).add_(1)
    assert seen.min() >= 1
    assert len(grid) == len(grid.boxes)
    assert [box for _, boxes in grid.batches(3) for box in boxes] == grid.boxes


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("height", "width", "tile", "overlap"), GRIDS)
def test_pointwise_prediction_is_merged_to_itself(height, width, tile, overlap, batch):
    """What depends on each cell alone must come out as if there were no tiles, corners included."""
    grid = TileGrid(height, width, tile, tile, overlap)
    field = torch.randn(2, 3, height, width)
    merged = merge_tiles(grid, field, lambda _, boxes: [2 * box.crop(field) + 1 for box in boxes], batch)
    torch.testing.assert_close(merged, 2 * field + 1, rtol=1e-5, atol=1e-5)


def test_merge_is_the_gaussian_quotient():
    grid = TileGrid(6, 10, 6, 6, 2)
    field = torch.zeros(1, 1, 6, 10)
    values = torch.randn(len(grid))
    merged = merge_tiles(grid, field, lambda first, boxes: [values[first].expand(1, 1, 6, 6)])
    weight = gaussian_weight(6, 6).double()
    total, weights = torch.zeros(2, 1, 1, 6, 10, dtype=torch.float64)
    for value, box in zip(values, grid.boxes, strict=True):
        box.crop(total).add_(value * weight)
        box.crop(weights).add_(weight)
    torch.testing.assert_close(merged.double(), total / weights)


def test_wrong_number_of_predictions_is_an_error():
    grid = TileGrid(8, 8, 4, 4, 0)
    field = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match="shorter"):
        merge_tiles(grid, field, lambda _, boxes: [box.crop(field) for box in boxes[:-1]], 2)


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap", "expected"),
    [
        (64, 64, 512, 4, None),
        (40, 64, 512, 4, None),
        (64, 66, 512, 4, (64, 8)),
        (128, 128, 512, 128, (64, 16)),
        (38, 128, 512, 4, (38, 8)),
        (32, 32, 24, 0, (2, 0)),
    ],
)
def test_vosr_grid(height, width, tile, overlap, expected):
    grid = vosr_tile_grid(height, width, tile, overlap)
    assert (grid and (grid.tile_height, grid.overlap)) == expected
