"""Latent spaces VOSR works in, as the host's latent formats.

On the wires a LATENT is what the VAE encodes; `process_in` makes it the normalised latent the network sees.
"""

from __future__ import annotations

import comfy.latent_formats
import torch


class QwenImage2D(comfy.latent_formats.Wan21):
    """Qwen-Image latents of single images, `[B, 16, H/8, W/8]`: (latent - mean) / std per channel."""

    latent_dimensions = 2
    temporal_downscale_ratio = 1

    def __init__(self):
        super().__init__()
        self.latents_mean: torch.Tensor = self.latents_mean.view(1, self.latent_channels, 1, 1)
        self.latents_std: torch.Tensor = self.latents_std.view(1, self.latent_channels, 1, 1)
        # The published preview decoder for this space reads video latents.
        self.taesd_decoder_name = None


class PixelUnshuffle(comfy.latent_formats.LatentFormat):
    """Pixels in [-1, 1] folded into channels, `[B, 3 f^2, H/f, W/f]`, times a scale that makes them about unit."""

    def __init__(self, factor: int, scale: float):
        self.latent_channels = 3 * factor**2
        self.spacial_downscale_ratio = factor
        self.scale_factor = scale
        # Channel c * f^2 + k holds colour c: a preview pixel is the mean over its f x f block.
        weight = 1.0 / (factor**2 * scale)
        self.latent_rgb_factors = (torch.eye(3, device="cpu").repeat_interleave(factor**2, dim=0) * weight).tolist()


def latent_format_for(channels: int, args: dict) -> comfy.latent_formats.LatentFormat:
    """The latent space of a checkpoint with `channels` latent channels.

    Raises ValueError when neither the channel count nor args.json's `ae_type` says which it is.
    """
    if args.get("ae_type") == "pixel_unshuffle":
        space = PixelUnshuffle(args.get("ae_downscale", 1), args.get("ae_scale", 1.0))
        if space.latent_channels == channels:
            return space
    if channels == 4:
        return comfy.latent_formats.SD15()
    if channels == 16:
        return QwenImage2D()
    raise ValueError(
        f"This VOSR model has {channels} latent channels; known are 4 (SD 2.1 VAE) and 16 (Qwen-Image VAE). "
        'For another latent space its args must say so ("ae_type": "pixel_unshuffle" with ae_downscale and ae_scale).'
    )
