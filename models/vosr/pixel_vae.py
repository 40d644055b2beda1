"""An exact autoencoder: pixel-unshuffle. It lets a small VOSR model work without a downloaded VAE."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PixelUnshuffleVAE:
    """Moves each `downscale` x `downscale` block of pixels into channels and multiplies by `scale`.

    scale: makes latents of natural images about unit variance, as the VAE's scaling factor does for
    Stable Diffusion. Decoding is the exact inverse, up to rounding.
    """

    downscale: int = 2
    scale: float = 2.0

    @property
    def latent_channels(self) -> int:
        return 3 * self.downscale**2

    def encode(self, image: Tensor) -> Tensor:
        """Image `[B, 3, H, W]` in [-1, 1] -> latent `[B, 3 d^2, H / d, W / d]`.

        Raises ValueError when the image is not RGB or its sides are not multiples of the downscale.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"the pixel autoencoder takes RGB images [B, 3, H, W], not {list(image.shape)}")
        if image.shape[-2] % self.downscale or image.shape[-1] % self.downscale:
            raise ValueError(
                f"image is {image.shape[-1]}x{image.shape[-2]}, but the pixel autoencoder needs sides that are "
                f"multiples of {self.downscale}: pad or crop it"
            )
        return F.pixel_unshuffle(image, self.downscale) * self.scale

    def decode(self, latent: Tensor) -> Tensor:
        """Latent `[B, 3 d^2, h, w]` -> image `[B, 3, h d, w d]`, unclamped."""
        if latent.ndim != 4 or latent.shape[1] != self.latent_channels:
            raise ValueError(
                f"the pixel autoencoder takes latents of {self.latent_channels} channels, not {list(latent.shape)}"
            )
        return F.pixel_shuffle(latent / self.scale, self.downscale)
