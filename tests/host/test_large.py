"""Very large results: what a restoration holds at a time grows with the picture by no more than 2.5 pictures.

The tensors' bytes are counted, at a size where a further copy of the picture shows. In parts of one float32 RGB picture
of the result, of which the enlarged picture and the result are two.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.autoencoders import patch_vae, qwen_vae
from harness.checkpoints import dinov2
from harness.vosr import TinyVOSR

SIDE, SMALL = 1536, 768
MOST = 2.5
VAE_TILE = 128
CHANNELS = 16


def peak(restore: Any, side: int) -> int:
    """Bytes held at a time while a picture of a quarter of a side is restored to it."""
    from realisr.host.cost import Meter

    image = torch.rand(1, side // 4, side // 4, 3, generator=torch.Generator().manual_seed(side))
    with torch.inference_mode(), Meter("cpu") as meter:
        result = restore(image, side)
    assert result.shape == (1, side, side, 3) and result.isfinite().all()
    return meter.peak + image.nbytes


def assert_bounded(restore: Any) -> None:
    """The peak is a constant and at most MOST pictures: both follow from two sizes."""
    with torch.inference_mode():
        restore(torch.rand(1, 64, 64, 3), 256)
    small, large = (peak(restore, side) for side in (SMALL, SIDE))
    pictures = (large - small) / (12 * (SIDE**2 - SMALL**2))
    assert pictures < MOST, f"every further pixel takes as much as {pictures:.2f} pictures do"


@pytest.fixture(scope="module")
def vosr(host) -> tuple[Any, Any]:
    from realisr.host.vosr.vision import load_dinov2

    width = 384
    tiny = TinyVOSR.create(
        host, "tiny_large", seed=1, latent_channels=CHANNELS, depth=1, context_width=width, has_end_time=True
    )
    name = host.save_model("clip_vision", "large_dinov2.safetensors", dinov2(width=width, depth=1))
    return tiny.load(), load_dinov2(host.models / "clip_vision" / name, num_heads=1)


@pytest.fixture(scope="module")
def sightless(host) -> tuple[Any, Any]:
    """Without DINOv2, whose forward holds more than a picture of these sizes and would hide what decoding does."""
    sizes = {"latent_channels": CHANNELS, "depth": 1, "context_width": 0, "has_end_time": True}
    return TinyVOSR.create(host, "tiny_large_sightless", seed=1, **sizes).load(), None


@pytest.mark.parametrize("parts", ["vosr", "sightless"])
def test_vosr_in_one_step(host, parts, request, monkeypatch):
    from realisr.host.tiling import sampling
    from realisr.host.vosr import conditioning
    from realisr.host.vosr.conditioning import EncodeOptions, SquareTiles
    from realisr.host.vosr.restore import VOSRRestoreOptions, restore
    from realisr.models import image as images

    model, vision = request.getfixturevalue(parts)
    vae = patch_vae()
    # As narrow in parts of the picture as those of a very large one.
    monkeypatch.setattr(images, "STRIP_ROWS", 32)
    monkeypatch.setattr(sampling, "CELLS_PER_FORWARD", 1)
    # As of a picture with many more tiles; those of the smaller one are streamed, too.
    for name, tiles in (("FEATURE_TILES", 1), ("HELD_TILES", 4), ("STREAMED_TILES", 2)):
        monkeypatch.setattr(conditioning, name, tiles)

    def run(image, side):
        encode = EncodeOptions(vae_tile=VAE_TILE)
        # Tiles whose features are together more than twice as large as the picture.
        options = VOSRRestoreOptions(side, side, 1, 1, encode=encode, tiles=SquareTiles(256, 32), color="adain")
        return restore(model, vae, vision, image, options)

    assert_bounded(run)


def test_dreamsr(host, monkeypatch):
    from harness import checkpoints
    from harness.dreamsr import load_flux
    from realisr.host.dreamsr.restore import DreamSR, restore_images, tiles_over
    from realisr.models import image as images

    sizes = {"heads": 1, "double_blocks": 1, "single_blocks": 1, "context_width": 16, "pooled_width": 16}
    model = load_flux(host, "large_test_flux.safetensors", checkpoints.flux(7, **sizes))
    text = [[torch.zeros(1, 5, 16), {"pooled_output": torch.zeros(1, 16), "guidance": 3.5}]]
    method, vae = DreamSR(model, text, texture_steps=1, tiles_per_batch=1), patch_vae()

    # As narrow in parts of the picture as those of a very large one.
    monkeypatch.setattr(images, "STRIP_ROWS", 32)

    def run(image, side):
        grid = tiles_over(side, side, 256, 32)
        return restore_images(method, vae, image, (side, side), grid, 1, VAE_TILE, "wavelet")

    assert_bounded(run)


@pytest.mark.parametrize("size", [(24, 40), (17, 9), (8, 50)])
def test_streamed_decoding_is_the_hosts_to_the_bit(host, size):
    from realisr.host.vae_tiles import can_stream, decode_streamed
    from realisr.host.vosr.vae import load_vosr_vae

    vae = load_vosr_vae(host.save_model("vae", "large_qwen.safetensors", qwen_vae()))
    latent = torch.randn(2, 16, *size, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = vae.decode_tiled(latent, tile_x=16, tile_y=16, overlap=4)
        assert can_stream(vae, latent)
        assert torch.equal(decode_streamed(vae, latent, 16, 4), expected)
    assert expected.std() > 0.01


def test_alpha_and_batches_come_through(vosr):
    from realisr.host.vosr.conditioning import SquareTiles
    from realisr.host.vosr.restore import VOSRRestoreOptions, restore

    model, vision = vosr
    images = torch.rand(2, 32, 48, 4, generator=torch.Generator().manual_seed(1))
    options = VOSRRestoreOptions(96, 64, 1, 1, tiles=SquareTiles(64, 16))
    with torch.inference_mode():
        together = restore(model, patch_vae(), vision, images, options)
        plain = restore(model, patch_vae(), vision, images[:1, ..., :3], options)
    assert together.shape == (2, 64, 96, 4)
    assert torch.equal(together[:1, ..., :3], plain)
    from realisr.models.image import upscale

    assert torch.equal(together[..., 3:], upscale(images, 96, 64)[..., 3:])
