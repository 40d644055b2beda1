"""The pixel-unshuffle autoencoder is exact."""

from __future__ import annotations

import pytest
import torch

from realisr.models.vosr.pixel_vae import PixelUnshuffleVAE


@pytest.mark.parametrize("downscale", [1, 2, 4])
def test_decoding_inverts_encoding(downscale):
    vae = PixelUnshuffleVAE(downscale, scale=2.0)
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    latent = vae.encode(image)
    assert latent.shape == (2, vae.latent_channels, 16 // downscale, 24 // downscale)
    assert torch.equal(vae.decode(latent), image)


def test_a_latent_pixel_holds_one_block_of_the_image():
    image = torch.zeros(1, 3, 8, 8)
    image[0, :, 2:4, 4:6] = torch.rand(3, 2, 2)
    latent = PixelUnshuffleVAE(2, scale=1.0).encode(image)
    assert torch.equal(latent[0, :, 1, 2].sort().values, image[0, :, 2:4, 4:6].flatten().sort().values)
    assert latent.count_nonzero() == 12


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 4, 8, 8), "RGB"), ((3, 8, 8), "RGB"), ((1, 3, 7, 8), "8x7.*multiples of 2")]
)
def test_images_it_cannot_take(shape, message):
    with pytest.raises(ValueError, match=message):
        PixelUnshuffleVAE(2).encode(torch.zeros(shape))


def test_latents_it_cannot_take():
    with pytest.raises(ValueError, match="12 channels"):
        PixelUnshuffleVAE(2).decode(torch.zeros(1, 4, 8, 8))
