"""VICR's nodes as an artist meets them: what goes through a whole graph, and what they say when it does not fit."""

from __future__ import annotations

import re

import pytest
import torch

from harness import checkpoints
from harness.vicr import Scene, load_bridge, load_fill, sample, tiny_vaes

FACTOR = {"resize": "scale factor", "scale": 2.0}


def build(host, image, resize=FACTOR, layout="side by side"):
    from realisr.nodes.vicr import DiptychBuilder

    return host.run(DiptychBuilder, image=image, resize=resize, layout=layout)


def crop(host, image, record):
    from realisr.nodes.vicr import DiptychCrop

    return host.run(DiptychCrop, image=image, diptych=record)[0]


def sigmas(host, latent, **options):
    from realisr.nodes.vicr import FLUXFillSigmas

    defaults = {"steps": 30, "denoise": 1.0, "base_shift": 0.5, "max_shift": 1.15}
    return host.run(FLUXFillSigmas, latent=latent, **(defaults | options))[0]


@pytest.mark.parametrize("layout", ["side by side", "stacked", "auto"])
@pytest.mark.parametrize("channels", [3, 4])
def test_from_image_to_image(host, layout, channels):
    """Builder, core's conditioning, sampler and decoder, crop: batch, odd sizes and alpha come out as asked for."""
    import nodes

    weights = checkpoints.flux(fill_model=True, double_blocks=1, single_blocks=1, context_width=32, pooled_width=768)
    model, (vae, _) = load_fill(host, "nodes_fill", weights), tiny_vaes()
    image = torch.rand(2, 17, 25, channels)
    canvas, mask, lq, record, width, height = build(host, image, layout=layout)
    assert canvas.shape == (2, height, width, 3) and lq.shape == (2, 34, 50, 3)
    assert (width, height) == ((128, 48) if layout == "side by side" else (64, 96))
    text = Scene.random().wire[0]
    positive, _, latent = host.run(
        nodes.InpaintModelConditioning,
        positive=[[text[0], {"pooled_output": text[1]["pooled_output"]}]],
        negative=[],
        pixels=canvas,
        vae=vae,
        mask=mask,
        noise_mask=False,
    )
    scene = Scene.random(tuple(latent["samples"].shape[-2:]), batch=2)
    (decoded,) = host.run(nodes.VAEDecode, vae=vae, samples={"samples": sample(model, scene, 2, wire=positive)})
    result = crop(host, decoded, record)
    assert result.shape == (2, 34, 50, channels)
    top, left = (0, 64) if layout == "side by side" else (48, 0)
    assert torch.equal(result[..., :3], decoded[:, top : top + 34, left : left + 50])
    if channels == 4:
        assert result[..., 3].std() > 0.05


@pytest.mark.parametrize(
    ("resize", "size"),
    [
        ({"resize": "scale factor", "scale": 1.0}, (20, 30)),
        ({"resize": "scale factor", "scale": 1.5}, (30, 45)),
        ({"resize": "target size", "width": 90, "height": 0}, (60, 90)),
        ({"resize": "target size", "width": 90, "height": 33}, (33, 90)),
    ],
)
def test_sizes(host, resize, size):
    lq = build(host, torch.rand(1, 20, 30, 3), resize)[2]
    assert lq.shape[1:3] == size


def test_crop_of_another_canvas(host):
    record = build(host, torch.rand(1, 16, 16, 3))[3]
    with pytest.raises(ValueError, match=r"Diptych Crop: .* canvas of 64x32 pixels, the image is 32x32\. Connect the"):
        crop(host, torch.zeros(1, 32, 32, 3), record)


def test_sigmas_follow_the_latent(host):
    small, large = ({"samples": torch.zeros(1, 16, side, 2 * side)} for side in (8, 64))
    assert (sigmas(host, large)[1:-1] > sigmas(host, small)[1:-1]).all()
    assert len(sigmas(host, small, steps=10, denoise=0.5)) == 11 and sigmas(host, small, denoise=0.5)[0] < 1
    odd = {"samples": torch.zeros(1, 16, 7, 15)}
    assert torch.equal(sigmas(host, odd), sigmas(host, {"samples": torch.zeros(1, 16, 8, 16)}))


def test_sigmas_of_what_they_are_not_for(host):
    latent = {"samples": torch.zeros(1, 16, 8, 16)}
    with pytest.raises(ValueError, match=r"noise mask.*Turn noise_mask off in InpaintModelConditioning"):
        sigmas(host, latent | {"noise_mask": torch.ones(1, 1, 64, 128)})
    with pytest.raises(ValueError, match=r"expected an image latent \[B, C, H, W\], got \[1, 16, 3, 8, 8\]"):
        sigmas(host, {"samples": torch.zeros(1, 16, 3, 8, 8)})


WRONG_FILES = {
    "a FLUX diffusion model": lambda: checkpoints.flux(double_blocks=1, single_blocks=1),
    "a LoRA": lambda: {"transformer.x_embedder.lora_A.weight": torch.zeros(4, 64)},
    "a DINOv2 encoder (hub naming)": checkpoints.dinov2,
    "a file unknown to this pack (1 entries, such as strange)": lambda: {"strange": torch.zeros(1)},
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_file_that_is_no_bridge(host, kind):
    with pytest.raises(ValueError, match=r"wrong\.safetensors is not a Vision-Context Bridge: it lacks ") as error:
        load_bridge(host, "wrong", WRONG_FILES[kind]())
    assert f"It looks like {kind}." in str(error.value) and "models/model_patches" in str(error.value)


def test_a_bridge_with_odd_tensors(host):
    weights = checkpoints.vision_context_bridge() | {"extra": torch.zeros(2), "proj_out.bias": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"odd\.safetensors does not fit a Vision-Context Bridge") as error:
        load_bridge(host, "odd", weights)
    assert "unexpected extra" in str(error.value) and "proj_out.bias is [7], expected [256]" in str(error.value)


def test_damaged_bridge(host):
    from realisr.nodes.vicr_loaders import LoadVisionContextBridge

    name = host.save_model("model_patches", "cut.safetensors", checkpoints.vision_context_bridge())
    path = host.models / "model_patches" / name
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=re.escape("cut.safetensors cannot be read: it is damaged or incomplete")):
        host.run(LoadVisionContextBridge, bridge_name=name)


@torch.inference_mode()
def test_bridge_in_half_precision_computes_in_full(host):
    """The file's precision stays in memory; products are taken in the input's."""
    weights = checkpoints.vision_context_bridge(4)
    half = {name: value.half() for name, value in weights.items()}
    embeds = torch.randn(2, 768)
    exact = load_bridge(host, "again", {name: value.float() for name, value in half.items()}).model(embeds)
    patch = load_bridge(host, "halved", half)
    assert patch.model.proj_in.weight.dtype == torch.float16
    torch.testing.assert_close(patch.model(embeds), exact, rtol=0, atol=1e-5)


def test_bridges_offered(host):
    from realisr.host.vicr.loader import bridge_choices

    host.save_model("model_patches", "sub/nested.safetensors", checkpoints.vision_context_bridge())
    assert "sub/nested.safetensors" in bridge_choices()
