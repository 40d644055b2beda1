"""From an image to VOSR's two conditions (arXiv 2604.03225): LQ latent and vision features, full and weak."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import comfy.model_management
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ...models.tiling import TileGrid, vosr_tile_grid
from ...models.vosr.sampling import DEFAULT_WEAK_STRENGTH
from .vae import encode_moments
from .vision import encode_vosr_features

PATCH_SIZE = 2
"""Latent cells per token side, the same in every VOSR model."""

FEATURE_TILES = 8
"""Tiles cut and encoded together: bounds the copies of the image that exist at one time."""

VAE_TILE_STEP = 64

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
        # The host's tiled encoding also runs half and double sides, which must fall on latent cells.
        if self.vae_tile < 0 or self.vae_tile % VAE_TILE_STEP:
            raise ValueError(
                f"The VAE tile size must be 0 or a multiple of {VAE_TILE_STEP} pixels, got {self.vae_tile}."
            )


@dataclass(frozen=True)
class VOSRConditioning:
    """full, weak: CONDITIONING. latent: an empty LATENT of the size to sample. width, height: of the image before
    padding, in pixels; the decoded image is cropped to them."""

    full: list[Any]
    weak: list[Any]
    latent: dict[str, Tensor]
    width: int
    height: int


def check_image(image: Tensor) -> None:
    """Raises ValueError unless image is `[B, H, W, 3 or 4]` with finite values."""
    if image.ndim != 4 or image.shape[-1] not in (3, 4) or 0 in image.shape:
        raise ValueError(f"Expected images [batch, height, width, 3 or 4 channels], got {list(image.shape)}.")
    if not torch.isfinite(image).all():
        bad = int((~torch.isfinite(image)).sum())
        raise ValueError(
            f"The image holds {bad} values that are not numbers (NaN or infinite). The node before this one made "
            "them: look at its output, often a half-precision VAE is the cause (--fp32-vae)."
        )


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeat the right and bottom border of `[B, H, W, C]` until both sides are multiples."""
    bottom, right = -image.shape[1] % multiple, -image.shape[2] % multiple
    if not (bottom or right):
        return image
    padded = F.pad(image.movedim(-1, 1), (0, right, 0, bottom), mode="replicate")
    return padded.movedim(1, -1)


def vae_tile_for(vae, shape: tuple[int, ...], memory_used, vae_tile: int, default: int = 512) -> int:
    """Side in pixels of VAE tiles: as told, else 0 (whole) when the host's estimate fits into free memory."""
    if vae_tile:
        return vae_tile
    free = comfy.model_management.get_free_memory(vae.device)
    return default if memory_used(shape, vae.vae_dtype) > free else 0


def encode_latent(vae, image: Tensor, options: EncodeOptions) -> Tensor:
    """LQ latent `[B, C, h, w]` of `[B, H, W, 3]`, as the VAE encodes it (not normalised)."""
    batch, height, width, channels = image.shape
    tile = vae_tile_for(vae, (batch, channels, height, width), vae.memory_used_encode, options.vae_tile)
    if options.posterior == "sample":
        mean, logvar = encode_moments(vae, image, tile)
        generator = torch.Generator().manual_seed(options.seed)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        latent = mean + torch.exp(0.5 * logvar) * noise
    elif tile:
        latent = vae.encode_tiled(image, tile_x=tile, tile_y=tile, overlap=tile // 8)
    else:
        latent = vae.encode(image)
    if latent.ndim != 4:
        raise ValueError(f"The VAE makes video latents {list(latent.shape)}; VOSR works on images. Use Load VOSR VAE.")
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
