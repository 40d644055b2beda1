"""FLUX's decoder with gradients, for losses on images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..flux.autoencoder import LATENT_SCALE, LATENT_SHIFT, Autoencoder


class LatentDecoder(nn.Module):
    """Latents as FLUX's network takes them `[B, 16, h, w]` -> images `[B, 3, 8 h, 8 w]` about in [-1, 1], float32.

    The frozen decoder of an autoencoder; its encoder is no part of this module.
    """

    def __init__(self, autoencoder: Autoencoder, recompute: bool = False):
        """recompute: whether activations are computed again in the backward pass."""
        super().__init__()
        network: nn.Module = autoencoder.network
        self.post_quant = network.post_quant_conv
        self.decoder = network.decoder
        if recompute:
            autoencoder.network.enable_gradient_checkpointing()

    def forward(self, latent: Tensor) -> Tensor:
        raw = (latent / LATENT_SCALE + LATENT_SHIFT).to(self.decoder.conv_in.weight.dtype)
        return self.decoder(raw if self.post_quant is None else self.post_quant(raw)).float()


def encode(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """Images `[B, 3, H, W]` in [0, 1] -> latents as FLUX's network takes them."""
    with torch.no_grad():
        return autoencoder.encode(2 * images - 1)
