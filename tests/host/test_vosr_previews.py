"""Latent previews while sampling, in each latent space a VOSR model may work in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

SIDE = (10, 14)


@pytest.fixture
def rgb_previews(host):
    import latent_preview

    latent_preview.set_preview_method("latent2rgb")
    yield latent_preview
    latent_preview.set_preview_method("default")


def as_tensor(image) -> torch.Tensor:
    import numpy

    return torch.from_numpy(numpy.array(image)).float() / 255


@pytest.mark.parametrize("channels", [4, 12, 16])
def test_previewer_makes_an_image(rgb_previews, channels):
    from realisr.host.vosr.latent import latent_format_for

    args = {"ae_type": "pixel_unshuffle", "ae_downscale": 2, "ae_scale": 2.0} if channels == 12 else {}
    space = latent_format_for(channels, args)
    assert space.latent_channels == channels and space.latent_dimensions == 2
    previewer = rgb_previews.get_previewer(torch.device("cpu"), space)
    kind, image, _ = previewer.decode_latent_to_preview_image("JPEG", torch.randn(2, channels, *SIDE))
    assert kind == "JPEG" and image.size == SIDE[::-1] and image.mode == "RGB"
    assert as_tensor(image).std() > 0.05


@pytest.mark.parametrize("factor", [2, 4])
def test_pixel_unshuffle_previews_are_the_image_in_small(rgb_previews, factor):
    from realisr.host.vosr.latent import PixelUnshuffle
    from realisr.models.vosr.pixel_vae import PixelUnshuffleVAE

    picture = torch.rand(1, 3, SIDE[0] * factor, SIDE[1] * factor)
    latent = PixelUnshuffleVAE(factor, 1.5).encode(picture * 2 - 1)
    previewer = rgb_previews.get_previewer(torch.device("cpu"), PixelUnshuffle(factor, 1.5))
    image = previewer.decode_latent_to_preview(latent)
    expected = F.avg_pool2d(picture, factor)[0].movedim(0, -1)
    torch.testing.assert_close(as_tensor(image), expected, rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize("tiny_name", ["multi_step", "qwen_space"])
def test_latents_go_in_and_come_out(request, tiny_name):
    """process_out undoes process_in, so that a LATENT is what the VAE makes before and after sampling."""
    tiny = request.getfixturevalue(tiny_name)
    model, latent = tiny.load().model, torch.randn(1, tiny.config.latent_channels, *SIDE)
    normalised = model.process_latent_in(latent)
    assert normalised.shape == latent.shape and not torch.allclose(normalised, latent, atol=1e-2)
    torch.testing.assert_close(model.process_latent_out(normalised), latent)


def test_sampling_sends_previews(rgb_previews, multi_step):
    """Each step's preview shows the clean prediction at latent size."""
    import comfy.utils
    import nodes

    from harness.vosr import Scene

    scene, seen = Scene.random(multi_step.config), []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, **_: seen.append((value, total, preview)))
    try:
        with torch.inference_mode():
            nodes.common_ksampler(multi_step.load(), 1, 3, 0.5, "euler", "simple", scene.full, scene.weak, scene.empty)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert [(value, total) for value, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(preview[1].size == (16, 16) for _, _, preview in seen)
