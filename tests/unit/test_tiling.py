"""Tiles cover the field, and merging them is the weighted mean it says it is."""

from __future__ import annotations

import pytest
import torch

from realisr.models.tiles.grid import Box, Panes, TileGrid, vosr_tile_grid
from realisr.models.tiles.merge import merge_tiles, sum_of_weights
from realisr.models.tiles.weights import WEIGHTS, gaussian_weight, tile_weight

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


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "linear", "narrow gaussian"])
def test_weights_summed_once_merge_to_the_same_bits(kind):
    grid = TileGrid(20, 26, 8, 8, 3)
    field, weight = torch.randn(1, 4, 20, 26), tile_weight(kind, 8, 8)
    predict = lambda _, boxes: [box.crop(field).sin() for box in boxes]  # noqa: E731
    weights = sum_of_weights(grid, weight)
    summed = weights.clone()
    for batch in (1, 3):
        assert torch.equal(
            merge_tiles(grid, field, predict, batch, weight, weights), merge_tiles(grid, field, predict, batch, weight)
        )
    assert torch.equal(weights, summed)


def test_wrong_number_of_predictions_is_an_error():
    grid = TileGrid(8, 8, 4, 4, 0)
    field = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match="shorter"):
        merge_tiles(grid, field, lambda _, boxes: [box.crop(field) for box in boxes[:-1]], 2)


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap", "expected"),
    [
        (64, 64, 512, 4, None),
        (40, 64, 512, 4, (40, 8)),
        (14, 24, 512, 4, (14, 8)),
        (24, 14, 512, 4, (14, 8)),
        (14, 14, 512, 4, None),
        (64, 66, 512, 4, (64, 8)),
        (128, 128, 512, 128, (64, 16)),
        (38, 128, 512, 4, (38, 8)),
        (32, 32, 24, 0, (2, 0)),
    ],
)
def test_vosr_grid(height, width, tile, overlap, expected):
    grid = vosr_tile_grid(height, width, tile, overlap)
    assert (grid and (grid.tile_height, grid.overlap)) == expected
    assert grid is None or grid.tile_width == grid.tile_height, "square, as trained"


FITTED = [
    # (field), (tile), (overlap), align -> (tile), rows, columns
    ((24, 30), (16, 12), (6, 4), 2, (16, 12), [0, 8], [0, 8, 16, 18]),
    ((24, 30), (17, 13), (6, 5), 2, (16, 12), [0, 8], [0, 6, 12, 18]),
    ((24, 30), (17, 13), (6, 5), 1, (17, 13), [0, 7], [0, 8, 16, 17]),
    ((8, 40), (16, 16), (0, 15), 4, (8, 16), [0], [0, 4, 8, 12, 16, 20, 24]),
    ((40, 8), (64, 64), (32, 32), 2, (40, 8), [0], [0]),
    ((16, 16), (1, 8), (0, 0), 2, (2, 8), [0, 2, 4, 6, 8, 10, 12, 14], [0, 8]),
]


@pytest.mark.parametrize(("size", "tile", "overlap", "align", "fitted", "rows", "columns"), FITTED)
def test_fitted_grid(size, tile, overlap, align, fitted, rows, columns):
    """Tiles of whole alignment steps, no larger than the field; strides rounded down, so that overlap is the least."""
    grid = TileGrid.fitted(size, tile, overlap, align)
    assert (grid.tile_height, grid.tile_width) == fitted
    assert (grid.rows, grid.columns) == (rows, columns)
    assert len(grid) == len(rows) * len(columns)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 9), (1, 4)])
def test_weights_are_symmetric_positive_and_separable(kind, height, width):
    weight = tile_weight(kind, height, width)
    assert weight.shape == (1, 1, height, width) and weight.dtype == torch.float32
    assert weight.min() > 0
    torch.testing.assert_close(weight, weight.flip(-1, -2))
    middle = weight[0, 0, height // 2, width // 2]
    torch.testing.assert_close(weight[0, 0] * middle, weight[0, 0, :, width // 2, None] * weight[0, 0, height // 2])
    assert (weight.max() == weight.min()) == (kind == "uniform")


def test_linear_weight_counts_cells_to_the_nearer_border():
    expected = torch.tensor([[1.0, 2, 2, 1], [2, 4, 4, 2], [1, 2, 2, 1]])
    assert torch.equal(tile_weight("linear", 3, 4)[0, 0], expected)


def test_another_kind_of_weight_is_an_error():
    with pytest.raises(ValueError, match="uniform, gaussian, linear, narrow gaussian, got 'box'"):
        tile_weight("box", 4, 4)


@pytest.mark.parametrize(("dim", "size"), [(-1, (4, 12)), (-2, (12, 4))])
def test_a_tile_of_panes_is_the_same_crop_of_each(dim, size):
    panes = Panes(3, dim)
    assert panes.size(4, 4) == size
    field = torch.arange(2 * 48).reshape(2, *size)
    split = panes.split(field)
    assert torch.equal(panes.join(split), field)
    tile = panes.crop(field, Box(1, 2, 2, 2))
    assert torch.equal(tile, torch.cat([pane[:, 1:3, 2:4] for pane in split], dim))
