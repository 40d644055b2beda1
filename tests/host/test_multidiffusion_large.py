"""A target of 8192 x 8192 pixels, by a tiny network."""

from __future__ import annotations

import pytest
import torch

from harness import dreamsr, tiled
from harness.checkpoints import flux
from harness.host import InProcessHost
from harness.tiled import node_lists, randn, text


@pytest.mark.slow
def test_8192_by_8192_takes_as_many_forwards_as_the_grid_has_tiles(host: InProcessHost):
    import comfy.samplers

    from realisr.nodes.tiles import TiledMultiDiffusion, TileGridNode

    sizes: list[list[int]] = []
    model = tiled.calls_of(dreamsr.load_flux(host, "large_flux.safetensors", flux(**tiled.FLUX)), sizes)
    x = randn(1, 16, 1024, 1024, seed=1)
    layout, preview, count = host.run(TileGridNode, size_of={"samples": x}, tile_size=512, overlap=128, align=2)
    assert count == 21 * 21 and preview.shape == (1, 1536, 1536, 3)
    patched, _ = host.run(
        TiledMultiDiffusion,
        **node_lists(
            model=model,
            tile_grid=layout,
            weights="uniform",
            tiles_per_batch=2,
            true_positions=False,
            patch_prompt_reader="auto",
        ),
    )
    guider = comfy.samplers.CFGGuider(patched)
    guider.inner_set_conds({"positive": text(10)})
    with torch.inference_mode():
        out = guider.sample(
            x,
            torch.zeros_like(x),
            comfy.samplers.sampler_object("euler"),
            torch.tensor([1.0, 0.0]),
            disable_pbar=True,
            seed=1,
        )
    assert out.shape == x.shape and out.isfinite().all()
    assert [size[0] for size in sizes] == [2] * 220 + [1]
    assert {tuple(size[2:]) for size in sizes} == {(64, 64)}
