"""Tiles of diptychs merged at every step, through ComfyUI's own model and sampler, against the reference."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from harness import vicr
from parity import flux_oracle, golden

pytestmark = pytest.mark.slow

TOLERANCE = 5e-5


class GivenEncodings:
    """A VAE that has encoded the tiles already: the reference's numbers, in the order they are asked for."""

    def __init__(self, latents: torch.Tensor):
        self.latents = iter(latents.unsqueeze(1))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        latent = next(self.latents)
        assert tuple(pixels.shape[1:3]) == tuple(8 * side for side in latent.shape[-2:])
        return latent


@pytest.mark.parametrize("per_batch", [1, 4])
@pytest.mark.parametrize("case", golden.cases("vicr_tiled", "flux"))
def test_sampled_tiles(host, case, per_batch):
    from realisr.models.vicr.diptych import build_diptych
    from realisr.nodes.vicr_tiles import DiptychTiles

    params = case.parameters
    given = flux_oracle.inputs(case)
    height, width = (8 * side for side in params["panel_latent_hw"])
    model = vicr.load_fill(host, f"golden_{params['model']}", golden.weights(params["model"], "flux")[1])
    bridge = vicr.load_bridge(host, f"golden_{params['bridge']}", golden.weights(params["bridge"], "flux")[1])
    text = [[given["in/txt"], {"pooled_output": given["in/pooled"], "guidance": params["guidance"]}]]
    model, text = vicr.bridged(model, text, bridge, given["in/clip_image_embeds"])
    built = build_diptych(torch.rand(1, height, width, 3), width, height, "side by side")
    model, positive, _, latent, tile_latent, count = host.run(
        DiptychTiles,
        model=[model],
        positive=[text],
        vae=[GivenEncodings(given["in/vae_latent_raw"])],
        canvas=[built.canvas],
        diptych=[built.diptych],
        tile_size=[8 * params["tile"]],
        tile_overlap=[8 * params["overlap"]],
        weights=[params["weights"]],
        tiles_per_batch=[per_batch],
    )
    assert count == len(given["in/boxes"])
    sigmas = vicr.Scene.sigmas(SimpleNamespace(empty=tile_latent), params["steps"])
    golden.assert_within(sigmas, given["in/sigmas"], 1e-6, "sigmas of the tile's size")
    scene = SimpleNamespace(noise=given["in/noise"], empty=latent, wire=positive)
    sampled = vicr.model_space(vicr.sample(model, scene, given["in/sigmas"]))
    judge = flux_oracle.tiled_diptychs(case)
    judge.check("latent", sampled, case["out/latent"], TOLERANCE)
    judge.check("right", sampled[..., width // 8 :], case.get("out/right"), TOLERANCE)
