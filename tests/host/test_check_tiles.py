"""Check Tiles as a node: any size, batches, grids, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from harness.tile_faults import inject
from realisr.models.image import upscale
from realisr.models.tiles.grid import TileGrid
from realisr.models.tiles.layout import TileLayout


def photo(height: int = 112, width: int = 160) -> torch.Tensor:
    """Shapes and texture `[1, H, W, 3]`, the same every time."""
    y, x = torch.meshgrid(torch.arange(height) / 16, torch.arange(width) / 16, indexing="ij")
    channels = [0.5 + 0.3 * torch.sin(x * (1 + k / 3) + y) * torch.cos(y * 1.3 - k) for k in range(3)]
    return torch.stack(channels, dim=-1)[None].clamp(0, 1)


def check(host, image, lq, **settings):
    from realisr.nodes.tile_check import CheckTiles

    limits = {"color": 24.0, "structure": 0.75, "agreement": 0.65, "blurred": 4.0, "noisy": 8.0, "seam": 3.0}
    return host.run(CheckTiles, image=image, lq_image=lq, **({"tile_size": 64, "overlap": 16} | limits | settings))


def test_good_and_bad_tiles(host):
    clean = photo()
    lq = upscale(clean, 40, 28)
    preview, report, mask, count = check(host, clean, lq)
    assert count == 0 and mask.sum() == 0 and torch.equal(preview, clean)
    assert report == "All 6 tiles are good."
    grid = TileGrid(112, 160, 64, 64, 16)
    broken = inject(clean[0], grid, 4, "black")[None]
    preview, report, mask, count = check(host, broken, lq)
    assert count == 1 and "tile 5 (x 48, y 48, 64x64)" in report and "colour" in report
    assert mask.shape == (1, 112, 160) and mask[0, 100, 80] == 1 and mask[0, 10, 10] == 0
    assert preview.shape == clean.shape and not torch.equal(preview, broken)


def test_nan_is_what_it_looks_for(host):
    clean = photo()
    broken = clean.clone()
    broken[0, 70, 80] = torch.nan
    preview, report, _, count = check(host, broken, upscale(clean, 40, 28))
    assert count == 1 and "not numbers" in report and preview.isfinite().all()


def test_batches_alpha_and_grids(host):
    clean = photo()
    broken = inject(clean[0], TileGrid(112, 160, 64, 64, 16), 0, "noise")[None]
    both = torch.cat([clean, broken])
    lq = upscale(clean, 40, 28)
    layout = TileLayout.fitted(112, 160, 64, 16)
    preview, report, mask, count = check(host, torch.cat([both, both[..., :1]], dim=-1), lq, tile_grid=layout)
    assert preview.shape == (2, 112, 160, 3) and count == 1 and mask[0].sum() == 0 and mask[1].sum() > 0
    assert report.splitlines()[0] == "Image 1: All 6 tiles are good."


@pytest.mark.parametrize(
    ("image", "lq", "settings", "message"),
    [
        (photo(), photo()[:, :, :80], {}, "of another shape"),
        (photo(), torch.cat([photo()] * 2), {}, "one for all or for each"),
        (photo(), photo(), {"tile_grid": TileLayout.fitted(256, 256, 64, 16)}, "tile grid is for 256x256"),
        (photo(), photo(), {"overlap": 64}, "overlap must be"),
        (photo() * 255, photo(), {}, "values go from"),
        (photo(), photo(), {"seam": 0.5}, "ratio"),
    ],
)
def test_refusals(host, image, lq, settings, message):
    with pytest.raises(ValueError, match=message):
        check(host, image, lq, **settings)
