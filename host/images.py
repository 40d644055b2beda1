"""Images in and out of a VAE, whole where memory allows and in tiles where not."""

from __future__ import annotations

import comfy.model_management
import torch
from torch import Tensor

VAE_TILE_STEP = 64
"""The host's tiled encoding also runs half and double sides, which must fall on latent cells."""

DEFAULT_VAE_TILE = 512


def check_image(image: Tensor, where: str = "") -> None:
    """Raises ValueError unless image is `[B, H, W, 3 or 4]` with finite values.

    where: what the message begins with, such as "Align Colors (reference): ".
    """
    if image.ndim != 4 or image.shape[-1] not in (3, 4) or 0 in image.shape:
        raise ValueError(f"{where}Expected images [batch, height, width, 3 or 4 channels], got {list(image.shape)}.")
    if not torch.isfinite(image).all():
        bad = int((~torch.isfinite(image)).sum())
        raise ValueError(
            f"{where}The image holds {bad} values that are not numbers (NaN or infinite). The node before this one "
            "made them: look at its output, often a half-precision VAE is the cause (--fp32-vae)."
        )


def check_vae_tile(vae_tile: int) -> None:
    """Raises ValueError unless a side in pixels, 0 for the choice by free memory, is one the VAE can tile with."""
    if vae_tile < 0 or vae_tile % VAE_TILE_STEP:
        raise ValueError(f"The VAE tile size must be 0 or a multiple of {VAE_TILE_STEP} pixels, got {vae_tile}.")


def vae_tile_for(vae, shape: tuple[int, ...], memory_used, vae_tile: int) -> int:
    """Side in pixels of VAE tiles: as told, else 0 (whole) when the host's estimate fits into free memory."""
    if vae_tile:
        return vae_tile
    free = comfy.model_management.get_free_memory(vae.device)
    return DEFAULT_VAE_TILE if memory_used(shape, vae.vae_dtype) > free else 0


def encode_image(vae, image: Tensor, vae_tile: int = 0) -> Tensor:
    """Latent `[B, C, h, w]` of images `[B, H, W, 3]`, as the VAE encodes them (not normalised).

    vae_tile: side in pixels of the VAE's tiles, 0 to decide by free memory. Raises ValueError for a VAE of video
    latents.
    """
    batch, height, width, channels = image.shape
    tile = vae_tile_for(vae, (batch, channels, height, width), vae.memory_used_encode, vae_tile)
    if tile:
        latent = vae.encode_tiled(image, tile_x=tile, tile_y=tile, overlap=tile // 8)
    else:
        latent = vae.encode(image)
    require_image_latent(latent)
    return latent


def require_image_latent(latent: Tensor) -> None:
    if latent.ndim != 4:
        raise ValueError(
            f"The VAE makes video latents {list(latent.shape)}; this works on images. Use the VAE of the image model."
        )


def decode_latent(vae, latent: Tensor, vae_tile: int = 0) -> Tensor:
    """Image `[B, H, W, 3]` in 0..1; vae_tile as in encode_image."""
    tile = vae_tile_for(vae, tuple(latent.shape), vae.memory_used_decode, vae_tile)
    if not tile:
        return vae.decode(latent)
    side = max(1, tile // vae.spacial_compression_decode())
    return vae.decode_tiled(latent, tile_x=side, tile_y=side, overlap=side // 4)
