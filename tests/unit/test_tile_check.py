"""Tile QA in plain torch: cells, measures by definition, verdicts, and a tile laid over the image that is kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from harness.tile_faults import FAULTS, inject
from realisr.models.image import upscale
from realisr.models.tile_check.blend import lay_over, nearest_tiles, part_grid, ramp, window_of
from realisr.models.tile_check.cells import neighbours, tile_cells
from realisr.models.tile_check.check import Thresholds, check_tiles
from realisr.models.tile_check.measures import SEAM_FLOOR, SEAM_REACH, measure_tiles, step_ratio
from realisr.models.tile_check.preview import draw_check
from realisr.models.tiles.grid import Box, TileGrid
from realisr.models.tiles.weights import WEIGHTS


def scene(height: int = 256, width: int = 256, seed: int = 0) -> torch.Tensor:
    """Blobs of many sizes and fine texture `[H, W, 3]`."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, height, width)
    for cells, weight in ((4, 0.25), (12, 0.35), (24, 0.25), (64, 0.15)):
        noise = torch.rand(1, 3, cells, cells, generator=generator)
        image += weight * F.interpolate(noise, (height, width), mode="bicubic")
    return (0.5 + 1.6 * (image - 0.5)).clamp(0, 1)[0].movedim(0, -1).contiguous()


def low_quality(image: torch.Tensor, scale: int = 4) -> torch.Tensor:
    height, width = image.shape[:2]
    small = upscale(image[None], width // scale, height // scale)
    noise = 0.02 * torch.randn(small.shape, generator=torch.Generator().manual_seed(9))
    return upscale((small + noise).clamp(0, 1), width, height)[0]


GRID = TileGrid(256, 256, 64, 64, 16)


@pytest.mark.parametrize(
    "grid", [GRID, TileGrid(100, 70, 64, 32, (16, 8)), TileGrid(9, 9, 9, 9, 0), TileGrid(65, 64, 64, 64, 0)]
)
def test_cells_cover_the_field_once(grid):
    count = torch.zeros(grid.height, grid.width)
    for cell, box in zip(tile_cells(grid), grid.boxes, strict=True):
        cell.crop(count).add_(1)
        assert box.top <= cell.top and cell.top + cell.height <= box.top + box.height
        assert box.left <= cell.left and cell.left + cell.width <= box.left + box.width
    assert bool((count == 1).all())


def test_neighbours_are_those_around():
    grid = TileGrid(12, 16, 4, 4, 0)
    assert neighbours(grid, 0) == [1, 4, 5]
    assert neighbours(grid, 5) == [0, 1, 2, 4, 6, 8, 9, 10]
    assert neighbours(TileGrid(4, 4, 4, 4, 0), 0) == []


def test_color_is_the_mean_by_channel():
    image = scene()
    cast = image + torch.tensor([0.1, 0.0, -0.2])
    found = measure_tiles(cast.movedim(-1, 0), image.movedim(-1, 0), GRID, 4.0)
    np.testing.assert_allclose(found.color.numpy(), 51.0, rtol=1e-4)
    assert found.structure.max() < 1e-4, "an even cast is no structure"


def test_a_step_in_float64():
    lq = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(2))
    restored = lq.clone()
    restored[:, :, 20:] += 0.1
    box = Box(0, 20, 40, 20)
    strip = (restored - lq)[:, :, 20 - SEAM_REACH : 20 + SEAM_REACH].double().numpy() * 255
    medians = np.median(np.abs(np.diff(strip, axis=2)).mean(0), axis=0)
    beside = np.delete(medians, SEAM_REACH - 1).mean()
    expected = (medians[SEAM_REACH - 1] + SEAM_FLOOR) / (beside + SEAM_FLOOR)
    assert step_ratio(restored, lq, box, -1, 20) == pytest.approx(expected, rel=1e-3)
    assert expected > 20 and step_ratio(restored, lq, box, -2, 20) < 3


@pytest.mark.parametrize("restoration", ["original", "enlarged"])
def test_good_tiles_are_good(restoration):
    image = scene()
    lq = low_quality(image)
    found = check_tiles(image if restoration == "original" else lq, lq, GRID, 4.0)
    assert found.bad == [] and found.report() == "All 25 tiles are good."


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "half blurred"])
@pytest.mark.parametrize("index", [0, 12])
def test_each_fault_is_found_and_nothing_else(fault, index):
    image = scene()
    found = check_tiles(inject(image, GRID, index, fault), low_quality(image), GRID, 4.0)
    assert index in found.bad
    # Averaging and filters carry the strongest faults into the tiles beside it.
    beside = neighbours(GRID, index) if fault in ("NaN", "black") else []
    assert set(found.bad) <= {index, *beside}


def test_a_seam_is_found():
    """Overlap 0, and a tile a little brighter than its neighbours: no other measure sees it."""
    grid = TileGrid(256, 256, 64, 64, 0)
    image = scene()
    lq = low_quality(image)
    smooth = F.avg_pool2d(image.movedim(-1, 0)[None], 5, 1, 2)[0].movedim(0, -1)
    smooth[64:128, 64:128] += 0.06
    found = check_tiles(smooth, lq, grid, 4.0)
    assert 5 in found.bad and {fault.kind for fault in found.faults[5]} == {"seam"}


def test_a_flat_tile_is_bad_only_where_the_input_shows_something():
    image = scene()
    image[:128] = 0.5
    broken = image.clone()
    broken[192:, :64] = image[192:, :64].mean(dim=(0, 1))
    found = check_tiles(broken, low_quality(image), TileGrid(256, 256, 64, 64, 0), 4.0)
    assert found.bad == [12] and "constant" in {fault.kind for fault in found.faults[12]}


def test_limits_can_be_turned_off():
    image = scene()
    broken, lq = inject(image, GRID, 12, "swapped"), low_quality(image)
    off = Thresholds(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert check_tiles(broken, lq, GRID, 4.0).bad == [12]
    assert check_tiles(broken, lq, GRID, 4.0, off).bad == []
    with pytest.raises(ValueError, match="ratio"):
        Thresholds(seam=0.5)
    with pytest.raises(ValueError, match="color is -1"):
        Thresholds(color=-1)


def test_the_report_says_where_and_why():
    image = scene()
    found = check_tiles(inject(image, GRID, 12, "colour-cast"), low_quality(image), GRID, 4.0)
    first, line = found.report().splitlines()
    assert first == "1 of 25 tiles are bad:"
    assert line.startswith("tile 13 (x 96, y 96, 64x64): colour ") and "(limit 24)" in line
    mask = found.mask(256, 256)
    assert mask.sum() == 48 * 48 and mask[104, 104] == 1 and mask[100, 104] == 0
    drawn = draw_check(found, image)
    assert drawn.shape == image.shape and not torch.equal(drawn, image)


def test_an_image_smaller_than_its_padded_grid():
    image = scene()[:250, :244].contiguous()
    found = check_tiles(image, low_quality(scene())[:250, :244], GRID, 4.0)
    assert found.bad == [] and found.mask(250, 244).shape == (250, 244)
    with pytest.raises(ValueError, match="tiles lie over"):
        check_tiles(scene(300, 300), scene(300, 300), GRID, 4.0)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_ramps_fall_from_the_tile_outwards(kind):
    found = ramp(kind, 64, 16)
    assert found.shape == (16,) and float(found.min()) >= 0 and float(found.max()) <= 1
    assert bool((found.diff() < 0).all())


@pytest.mark.parametrize("kind", WEIGHTS)
def test_only_the_window_is_touched(kind):
    """The tile is all new, what is beyond its window is the old one to the bit, and between them it goes over."""
    generator = torch.Generator().manual_seed(4)
    kept = torch.rand(3, 256, 256, generator=generator)
    old, window, box = kept.clone(), window_of(GRID, 12), GRID.boxes[12]
    assert window == Box(80, 80, 96, 96)
    new = torch.rand(3, 96, 96, generator=generator)
    lay_over(kept, new, GRID, 12, kind)
    outside = torch.ones(256, 256, dtype=torch.bool)
    window.crop(outside).fill_(False)
    assert torch.equal(kept[:, outside], old[:, outside])
    assert torch.equal(box.crop(kept), new[:, 16:80, 16:80])
    between, ends = window.crop(kept), torch.stack([window.crop(old), new])
    assert bool(((between >= ends.amin(0) - 1e-6) & (between <= ends.amax(0) + 1e-6)).all())


def test_what_was_not_a_number_is_all_new():
    kept = torch.full((1, 256, 256), torch.nan)
    lay_over(kept, torch.ones(1, 80, 80), GRID, 0, "linear")
    assert bool((kept[:, :80, :80] == 1).all()) and bool(kept[:, 80:].isnan().all())


def test_windows_end_at_the_field_and_have_tiles_of_their_own():
    assert window_of(GRID, 0) == Box(0, 0, 80, 80) and window_of(GRID, 24) == Box(176, 176, 80, 80)
    part = part_grid(GRID, window_of(GRID, 12))
    assert (part.height, part.tile_height, len(part)) == (96, 64, 4)
    # Middles at 112 and 144 along both axes; the nearest of the grid is at 128.
    assert nearest_tiles(GRID, part, window_of(GRID, 12)) == [12, 12, 12, 12]
    whole = TileGrid(32, 32, 32, 32, 0)
    assert window_of(whole, 0) == Box(0, 0, 32, 32) and math.prod(part_grid(whole, Box(0, 0, 32, 32)).overlaps) == 0
