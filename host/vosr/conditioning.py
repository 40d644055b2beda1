"""From an image to VOSR's two conditions (arXiv 2604.03225): LQ latent and vision features, full and weak."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import comfy.model_management
import torch
from einops import rearrange
from torch import Tensor

from ...models.image import pad_to_multiple
from ...models.tiles.grid import TileGrid, vosr_tile_grid
from ...models.vosr.sampling import DEFAULT_WEAK_STRENGTH
from ..images import check_image, check_vae_tile, encode_image, require_image_latent, vae_tile_for
from .vae import encode_moments
from .vision import encode_vosr_features

PATCH_SIZE = 2
"""Latent cells per token side, the same in every VOSR model."""

FEATURE_TILES = 8
"""Tiles cut and encoded together: bounds the copies of the image that exist at one time."""

Posterior = Literal["mean", "sample"]


@dataclass(frozen=True)
class Tiling:
    """Tiles of the diffusion model in image pixels; size 0 turns tiling off.

    Raises ValueError for a negative size or an overlap that leaves no new pixels in a tile.
    """

    size: int = 512
    overlap: int = 32

    def __post_init__(self):
        if self.size < 0 or self.overlap < 0:
            raise ValueError(f"Tile size and overlap cannot be negative, got {self.size} and {self.overlap}.")
        if self.size and self.overlap >= self.size:
            raise ValueError(
                f"Tile overlap {self.overlap} px must be smaller than the tile size {self.size} px. "
                "An eighth of the tile is a good overlap."
            )

    def grid(self, height: int, width: int, downscale: int) -> TileGrid | None:
        """Tiles over a latent of height x width; None when tiling is off or one tile holds it all."""
        if not self.size:
            return None
        return vosr_tile_grid(height, width, self.size, self.overlap, downscale, PATCH_SIZE)


@dataclass(frozen=True)
class EncodeOptions:
    """How the LQ image becomes conditions.

    weak_strength: w in [0, 1], what the weak branch sees of the LQ latent (trained 0.05..0.25). posterior: the
    VAE's mean, or a sample drawn with `seed` (as the reference's scripts do). vae_tile: side in pixels of the
    tiles the VAE works in, 0 to decide by free memory.
    """

    weak_strength: float = DEFAULT_WEAK_STRENGTH
    tiling: Tiling = field(default_factory=Tiling)
    posterior: Posterior = "mean"
    seed: int = 0
    vae_tile: int = 0

    def __post_init__(self):
        check_vae_tile(self.vae_tile)


@dataclass(frozen=True)
class VOSRConditioning:
    """full, weak: CONDITIONING. latent: an empty LATENT of the size to sample. width, height: of the image before
    padding, in pixels; the decoded image is cropped to them."""

    full: list[Any]
    weak: list[Any]
    latent: dict[str, Tensor]
    width: int
    height: int


def encode_latent(vae, image: Tensor, options: EncodeOptions) -> Tensor:
    """LQ latent `[B, C, h, w]` of `[B, H, W, 3]`, as the VAE encodes it (not normalised)."""
    if options.posterior == "mean":
        return encode_image(vae, image, options.vae_tile)
    batch, height, width, channels = image.shape
    tile = vae_tile_for(vae, (batch, channels, height, width), vae.memory_used_encode, options.vae_tile)
    mean, logvar = encode_moments(vae, image, tile)
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    latent = mean + torch.exp(0.5 * logvar) * noise
    require_image_latent(latent)
    return latent


def encode_features(vision, image: Tensor, grid: TileGrid | None, downscale: int) -> Tensor:
    """Vision features of the image `[B, M, E]`, or of all tiles `[B, tiles * M, E]`; `[B, 1, 0]` without encoder."""
    if vision is None:
        return image.new_zeros(image.shape[0], 1, 0)
    if grid is None:
        return encode_vosr_features(vision, image)
    per_tile = []
    channels_first = image.movedim(-1, 1)
    for _, boxes in grid.batches(FEATURE_TILES):
        comfy.model_management.throw_exception_if_processing_interrupted()
        crops = torch.cat([box.crop(channels_first, downscale) for box in boxes]).movedim(1, -1)
        features = encode_vosr_features(vision, crops)
        per_tile.append(rearrange(features, "(tile b) m e -> b (tile m) e", tile=len(boxes)))
    return torch.cat(per_tile, dim=1)


def build_conditioning(image: Tensor, vae, vision, options: EncodeOptions) -> VOSRConditioning:
    """Conditions of images `[B, H, W, 3 or 4]` in 0..1, already at the size of the result; alpha is left out.

    vae: the autoencoder the model was trained with. vision: a DINOv2 CLIP_VISION, or None for models without.
    Raises ValueError for images that are not finite and for a VAE of video latents.
    """
    check_image(image)
    height, width = image.shape[1:3]
    downscale = vae.spacial_compression_encode()
    padded = pad_to_multiple(image[..., :3], downscale * PATCH_SIZE)
    latent = encode_latent(vae, padded, options)
    grid = options.tiling.grid(latent.shape[-2], latent.shape[-1], downscale)
    features = encode_features(vision, padded, grid, downscale)
    shared = {"concat_latent_image": latent, "vosr_tiles": grid}
    # All-zero features give equal context tokens, so one stands for all.
    blank = features.new_zeros(features.shape[0], 1, features.shape[2])
    return VOSRConditioning(
        full=[[features, {**shared, "vosr_lq_strength": 1.0}]],
        weak=[[blank, {**shared, "vosr_lq_strength": options.weak_strength}]],
        latent={"samples": torch.zeros_like(latent), "downscale_ratio_spacial": downscale},
        width=width,
        height=height,
    )
