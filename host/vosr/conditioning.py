"""From an image to VOSR's two conditionings (arXiv 2604.03225): LQ latent and vision features, full and weak.

A VOSR CONDITIONING is one entry `[features, options]`:

* features `[B, M, E]` of the vision encoder. A single token stands for any number of equal ones: the weak branch's
  zeros, and what is not used where every tile has its own.
* options: `concat_latent_image`, the LQ latent as the VAE encoded it; STRENGTH; and for a tiled run TileOptions with
  the features of each tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import comfy.model_management
import torch
from torch import Tensor

from ...models.image import pad_to_multiple
from ...models.tiles.grid import TileGrid, vosr_tile_grid
from ...models.tiles.layout import CELL, TileLayout, require_tile
from ..images import check_vae_tile, checked_image, encode_image, require_image_latent
from ..progress import NodeBar
from ..tiling.conditions import TileOptions, with_tile_options
from ..types import VAE, ClipVision, Conditioning
from .vae import encode_moments
from .vision import encode_vosr_features

STRENGTH = "vosr_lq_strength"
"""Option: what the branch sees of the LQ latent, 1 for the full one, w for the weak one, None for the model's own w."""

PATCH_SIZE = 2
"""Latent cells per token side, the same in every VOSR model."""

FEATURE_TILES = 8
"""Tiles cut and encoded together: bounds the copies of the image that exist at one time."""

NODE = "VOSR Conditioning"

Posterior = Literal["mean", "sample"]


@dataclass(frozen=True)
class SquareTiles:
    """Square tiles of the diffusion model, in image pixels. Raises ValueError for ones that cannot be laid."""

    size: int = 512
    """0 for no tiles."""
    overlap: int = 32

    def __post_init__(self):
        if self.size:
            require_tile(self.size, self.overlap)

    def grid(self, height: int, width: int, downscale: int) -> TileGrid | None:
        """Tiles over a latent of height x width; None for no tiles, or when one holds it all."""
        if not self.size:
            return None
        return vosr_tile_grid(height, width, self.size, self.overlap, downscale, PATCH_SIZE)


def grid_of_layout(layout: TileLayout, height: int, width: int, downscale: int, node: str) -> TileGrid | None:
    """The tiles of a Tile Grid over a latent of height x width; None when one tile holds it all.

    A Tile Grid counts in cells of 8 pixels, and is made anew for latents with other ones. Raises ValueError, naming
    `node`, for a grid over another size, or with tiles that cut the network's patches.
    """
    grid = layout.grid
    if (grid.height, grid.width) != (height, width) and CELL % downscale == 0:
        grid = grid.scaled(CELL // downscale)
    if (grid.height, grid.width) != (height, width):
        side = max(downscale * PATCH_SIZE, CELL)
        raise ValueError(
            f"{node}: the tile grid is for {layout.image_size[1]}x{layout.image_size[0]} pixels (width x height), the "
            f"image to restore is {width * downscale}x{height * downscale}, padded to whole patches. Give Tile Grid "
            f"the image at the size of the result, both sides multiples of {side}."
        )
    cut = [side for side in (grid.tile_height, grid.tile_width, *grid.rows, *grid.columns) if side % PATCH_SIZE]
    if cut:
        raise ValueError(
            f"{node}: tiles must have sides and starts that are multiples of {PATCH_SIZE} latent cells, got {grid}. "
            f"Set align of Tile Grid to {PATCH_SIZE}."
        )
    return None if len(grid) == 1 else grid


@dataclass(frozen=True)
class EncodeOptions:
    """How the LQ image becomes conditionings. Raises ValueError for values outside of what the fields say."""

    weak_strength: float | None = None
    """w in [0, 1], what the weak branch sees of the LQ latent; None for the model's own, which it was trained for."""
    tiles: SquareTiles | TileLayout = field(default_factory=SquareTiles)
    posterior: Posterior = "mean"
    """The VAE's mean, or a sample drawn with `seed` (as the reference's scripts do)."""
    seed: int = 0
    vae_tile: int = 0
    """Side in pixels of the tiles the VAE works in, a multiple of 64; 0 to decide by free memory."""
    node: str = NODE
    """For messages."""

    def __post_init__(self):
        check_vae_tile(self.vae_tile)
        if self.weak_strength is not None and not 0 <= self.weak_strength <= 1:
            raise ValueError(
                f"The weak strength must be between 0 and 1, or -1 for the model's own, got {self.weak_strength:g}."
            )

    def grid(self, height: int, width: int, downscale: int) -> TileGrid | None:
        """Tiles over a latent of height x width, None for none."""
        if isinstance(self.tiles, TileLayout):
            return grid_of_layout(self.tiles, height, width, downscale, self.node)
        return self.tiles.grid(height, width, downscale)


@dataclass(frozen=True)
class VOSRConditioning:
    """What an image is restored from."""

    full: Conditioning
    weak: Conditioning
    latent: dict[str, Any]
    """An empty LATENT of the size to sample."""
    width: int
    """Of the image before padding, in pixels: the decoded image is cropped to it."""
    height: int


def encode_latent(vae: VAE, image: Tensor, options: EncodeOptions) -> Tensor:
    """LQ latent `[B, C, h, w]` of `[B, H, W, 3]`, as the VAE encodes it (not normalised)."""
    if options.posterior == "mean":
        return encode_image(vae, image, options.vae_tile)
    mean, logvar = encode_moments(vae, image, options.vae_tile)
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    latent = mean + torch.exp(0.5 * logvar) * noise
    require_image_latent(latent)
    return latent


def tile_features(vision: ClipVision, image: Tensor, grid: TileGrid, downscale: int) -> list[Tensor]:
    """Vision features `[B, M, E]` of each tile of images `[B, H, W, 3]`."""
    per_tile: list[Tensor] = []
    channels_first, bar = image.movedim(-1, 1), NodeBar(len(grid))
    for _, boxes in grid.batches(FEATURE_TILES):
        comfy.model_management.throw_exception_if_processing_interrupted()
        crops = torch.cat([box.crop(channels_first, downscale) for box in boxes]).movedim(1, -1)
        with bar.stage(len(boxes)):
            per_tile += encode_vosr_features(vision, crops).chunk(len(boxes))
    return per_tile


def wire(
    latent: Tensor, strength: float | None, features: Tensor, grid: TileGrid | None, tiles: Sequence[Tensor] | None
) -> Conditioning:
    """A VOSR CONDITIONING. features `[B, M, E]`; tiles: those of each tile of `grid`, None where the canvas's do."""
    options: dict[str, Any] = {"concat_latent_image": latent, STRENGTH: strength}
    if grid is not None:
        own = [{}] * len(grid) if tiles is None else [{"cross_attn": tile} for tile in tiles]
        options = with_tile_options(options, TileOptions(grid, own))
    return [[features, options]]


def build_conditioning(image: Tensor, vae: VAE, vision: ClipVision | None, options: EncodeOptions) -> VOSRConditioning:
    """Conditionings of images `[B, H, W, 3 or 4]` in 0..1, already at the size of the result; alpha is left out.

    vae: the autoencoder the model was trained with. vision: a DINOv2, or None for models without. Raises ValueError
    for images that are not finite, for a VAE of video latents and for tiles laid over another size.
    """
    image = checked_image(image)
    height, width = image.shape[1:3]
    downscale = vae.spacial_compression_encode()
    padded = pad_to_multiple(image[..., :3], downscale * PATCH_SIZE)
    grid = options.grid(padded.shape[1] // downscale, padded.shape[2] // downscale, downscale)
    bar, whole, tiles = NodeBar(1 if vision is None else 2), None, None
    with bar.stage():
        latent = encode_latent(vae, padded, options)
    if vision is not None:
        with bar.stage():
            if grid is None:
                whole = encode_vosr_features(vision, padded)
            else:
                tiles = tile_features(vision, padded, grid, downscale)
    known = tiles[0] if tiles else whole
    # All-zero features give equal context tokens, so one stands for all.
    blank = padded.new_zeros(padded.shape[0], 1, 0) if known is None else torch.zeros_like(known[:, :1])
    return VOSRConditioning(
        full=wire(latent, 1.0, blank if whole is None else whole, grid, tiles),
        weak=wire(latent, options.weak_strength, blank, grid, None),
        latent={"samples": torch.zeros_like(latent), "downscale_ratio_spacial": downscale},
        width=width,
        height=height,
    )
