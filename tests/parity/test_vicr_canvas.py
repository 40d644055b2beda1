"""Canvas, mask, conditioning and noise levels of VICR against the reference numbers."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from torch import Tensor

from parity import golden
from realisr.models.vicr import diptych as vicr
from realisr.models.vicr.sigmas import dynamic_shift, flow_match_sigmas

IMAGE_TOLERANCE, UPSAMPLE_TOLERANCE, SIGMA_TOLERANCE = 1e-6, 5e-6, 1e-6


def channels_last(images: Tensor) -> Tensor:
    return rearrange(images, "b c h w -> b h w c")


def canvas_cases(key: str) -> list:
    """Cases that hold a tensor."""
    return golden.cases("vicr_canvas", "flux", lambda case: key in case)


@pytest.mark.parametrize("case", canvas_cases("out/up"))
def test_upsampling(case):
    height, width = case.parameters["to"]
    enlarged = vicr.bicubic(channels_last(case["in/lq"]), width, height)
    golden.assert_within(enlarged, channels_last(case["out/up"]), UPSAMPLE_TOLERANCE)


@pytest.mark.parametrize("case", canvas_cases("out/canvas"))
def test_canvas_and_mask(case):
    image = channels_last(case["in/image"])
    height, width = image.shape[1:3]
    made = vicr.build_diptych(image, width, height, "side by side")
    golden.assert_within(made.canvas, channels_last(case["out/canvas"]), IMAGE_TOLERANCE)
    assert torch.equal(made.mask[:, None], case["out/mask"])
    if "out/panel_hw" in case:
        assert [made.diptych.panel_height, made.diptych.panel_width] == case["out/panel_hw"].tolist()
        top, bottom, left, right = case["out/crop_y0y1x0x1"].tolist()
        expected = channels_last(case["out/canvas"])[:, top:bottom, left:right]
        golden.assert_within(vicr.crop_target(made.canvas, made.diptych), expected, IMAGE_TOLERANCE)


@pytest.mark.parametrize("case", golden.cases("vicr_sigmas", "flux"))
def test_sigmas(case):
    height, width = case.parameters["canvas_hw"]
    tokens = (height // 16) * (width // 16)
    assert tokens == case.parameters["tokens"]
    assert dynamic_shift(tokens) == pytest.approx(case["out/mu"].item(), abs=1e-6)
    golden.assert_within(flow_match_sigmas(tokens, case.parameters["steps"]), case["out/sigmas"], SIGMA_TOLERANCE)


class GivenEncoder:
    """The VAE input of a node: its answer is given, and what it was asked is kept."""

    def __init__(self, latent: Tensor):
        self.latent, self.seen = latent, []

    def encode(self, pixels: Tensor) -> Tensor:
        self.seen.append(pixels)
        return self.latent


@pytest.mark.parametrize("case", canvas_cases("out/concat80"))
def test_conditioning_the_host_makes_of_it(host, case):
    """Core's InpaintModelConditioning on the builder's outputs, and the rows FLUX Fill then reads."""
    import nodes

    from harness.vicr import load_fill
    from realisr.nodes.vicr import DiptychBuilder

    model = load_fill(host, "golden_flux_fill", golden.weights("flux_fill", "flux")[1])
    canvas, mask, *_ = host.run(
        DiptychBuilder,
        image=channels_last(case["in/image"]),
        layout="side by side",
        resize={"resize": "scale factor", "scale": 1.0},
    )
    encoder = GivenEncoder(case["in/vae_latent_raw"])
    positive, _, latent = host.run(
        nodes.InpaintModelConditioning,
        positive=[[torch.zeros(1, 1, 32), {}]],
        negative=[],
        pixels=canvas,
        vae=encoder,
        mask=mask,
        noise_mask=False,
    )
    assert "noise_mask" not in latent
    masked = encoder.seen[0] * 2 - 1
    golden.assert_within(masked, channels_last(case["out/canvas_m11"]), 2 * IMAGE_TOLERANCE)

    noise = case["in/noise"]
    concat = model.model.concat_cond(noise=noise, device=torch.device("cpu"), **positive[0][1])
    golden.assert_within(concat, case["out/concat80"], IMAGE_TOLERANCE)
    golden.assert_within(concat[:, :16], case["out/masked_latent"], IMAGE_TOLERANCE)
    assert torch.equal(concat[:, 16:], case["out/mask64"])
    network = model.model.diffusion_model
    golden.assert_within(network.process_img(concat)[0], case["out/packed_cond"], IMAGE_TOLERANCE)
    rows, _ = network.process_img(torch.cat([noise, concat], dim=1))
    golden.assert_within(rows, case["out/packed_input"], IMAGE_TOLERANCE)


@pytest.mark.parametrize("case", canvas_cases("in/mask"))
def test_order_of_the_masks_channels(host, case):
    from harness.vicr import load_fill

    model = load_fill(host, "golden_flux_fill", golden.weights("flux_fill", "flux")[1])
    mask = case["in/mask"]
    noise = torch.zeros(1, 16, mask.shape[-2] // 8, mask.shape[-1] // 8)
    concat = model.model.concat_cond(noise=noise, device=torch.device("cpu"), concat_mask=mask)
    assert torch.equal(concat[:, 16:], case["out/mask64"])
    assert torch.equal(model.model.diffusion_model.process_img(concat[:, 16:])[0], case["out/packed"])
