"""Why tiles are merged at every step: seams against those of tiles restored one by one and merged as images."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from harness import vicr
from harness.checkpoints import flux, taesd
from harness.host import InProcessHost

WIDTH, HEIGHT, TILE, OVERLAP, STEPS = 128, 96, 64, 32, 6


def seam_ratios(image: torch.Tensor, grid) -> tuple[float, float]:
    """(mean, max) steepness across the lines where tiles begin or end, relative to that everywhere else.

    image: `[B, C, H, W]` over the grid's field. Steepness of a line is the mean absolute difference of the pixels on
    its two sides; 1 means that tile borders cannot be told from other lines.
    """
    seams, others = [], []
    for dim, starts, side in ((-1, grid.columns, grid.tile_width), (-2, grid.rows, grid.tile_height)):
        lines = image.diff(dim=dim).abs().movedim(dim, 0).flatten(1).mean(1)
        borders = {edge for start in starts for edge in (start, start + side)} - {0, image.shape[dim]}
        at = torch.zeros(len(lines), dtype=torch.bool)
        at[[edge - 1 for edge in borders]] = True
        seams.append(lines[at])
        others.append(lines[~at])
    border, elsewhere = torch.cat(seams), torch.cat(others).mean()
    return (border.mean() / elsewhere).item(), (border.max() / elsewhere).item()


@pytest.fixture(scope="module")
def wires(host: InProcessHost):
    import nodes

    weights = flux(fill_model=True, heads=1, double_blocks=2, single_blocks=2, context_width=16, pooled_width=16)
    host.save_model("vae", "seams_taef1.safetensors", taesd())
    (vae,) = host.run(nodes.VAELoader, vae_name="seams_taef1.safetensors")
    return vicr.load_fill(host, "seams_fill", weights), vae


@pytest.mark.parametrize(("weights", "margin"), [("uniform", 0.5), ("gaussian", 0.15)])
def test_merging_at_every_step_leaves_less_of_a_seam(wires, weights, margin):
    from realisr.models.tiles.grid import Panes, TileGrid
    from realisr.models.tiles.merge import merge_tiles
    from realisr.models.tiles.weights import tile_weight
    from realisr.models.vicr.diptych import build_diptych
    from realisr.nodes.vicr_tiles import DiptychTiles

    fill, vae = wires
    generator = torch.Generator().manual_seed(2)
    lq = F.interpolate(torch.rand(1, 3, 12, 16, generator=generator), (HEIGHT, WIDTH), mode="bicubic").clamp(0, 1)
    built = build_diptych(lq.movedim(1, -1), WIDTH, HEIGHT, "side by side")
    text = [
        [
            torch.randn(1, 4, 16, generator=generator),
            {
                "pooled_output": torch.randn(1, 16, generator=generator),
                "guidance": 30.0,
            },
        ]
    ]
    model, positive, _, latent, tile_latent, count = InProcessHost.run(
        DiptychTiles,
        model=[fill],
        positive=[text],
        vae=[vae],
        canvas=[built.canvas],
        diptych=[built.diptych],
        tile_size=[TILE],
        tile_overlap=[OVERLAP],
        weights=[weights],
        tiles_per_batch=[6],
    )
    assert count == 6
    noise = torch.randn(latent["samples"].shape, generator=generator)
    sigmas = vicr.Scene.sigmas(SimpleNamespace(empty=tile_latent), STEPS)
    panes, grid = Panes(2, -1), TileGrid(HEIGHT, WIDTH, TILE, TILE, OVERLAP, 16)

    def restored(model, wire, noise):
        """The decoded target panel `[1, 3, h, w]`."""
        empty = {"samples": torch.zeros_like(noise)}
        sampled = vicr.sample(model, SimpleNamespace(noise=noise, empty=empty, wire=wire), sigmas)
        with torch.inference_mode():
            return panes.split(vae.decode(sampled).movedim(-1, 1))[1]

    def tile_alone(first, boxes):
        own = positive[0][1]["model_conds"]["realisr_tile_options"].options[first]
        return [restored(fill, [[text[0][0], {**text[0][1], **own}]], panes.crop(noise, in_cells(boxes[0])))]

    def in_cells(box):
        return type(box)(*(side // 8 for side in (box.top, box.left, box.height, box.width)))

    per_step = seam_ratios(restored(model, positive, noise), grid)
    field = torch.empty(1, 3, HEIGHT, WIDTH)
    afterwards = seam_ratios(merge_tiles(grid, field, tile_alone, 1, tile_weight(weights, TILE, TILE)), grid)
    assert per_step[0] < afterwards[0] - margin and per_step[1] < afterwards[1] - margin, (per_step, afterwards)
