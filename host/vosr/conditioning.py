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
from ...models.tiles.grid import Box, TileGrid, Wrap, vosr_tile_grid, wrapped_axes
from ...models.tiles.layout import CELL, TileLayout, require_tile
from ..images import check_vae_tile, checked_image, require_image_latent
from ..progress import NodeBar
from ..tiling.conditions import TileOptions, with_tile_options
from ..types import VAE, ClipVision, Conditioning, Model
from ..vae_wrap import closed, continued, encode_around, padded_for
from .vae import encode_moments
from .vision import encode_vosr_features

STRENGTH = "vosr_lq_strength"
"""Option: what the branch sees of the LQ latent, 1 for the full one, w for the weak one, None for the model's own w."""

ONCE = "vosr_features_once"
"""Option of a tile: nothing is to be kept of its features, which are read once."""

PATCH_SIZE = 2
"""Latent cells per token side, the same in every VOSR model."""

FEATURE_TILES = 8
"""Tiles cut and encoded together: bounds the copies of the image that exist at one time."""

HELD_TILES = 64
"""Of a run that reads features once, more tiles than these do not have all of theirs held: together they are as large
as the image, or larger."""

STREAMED_TILES = 2 * FEATURE_TILES
"""Tiles whose features are then held at a time."""

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

    def grid(self, height: int, width: int, downscale: int, wrap: Wrap = "none") -> TileGrid | None:
        """Tiles over a latent of height x width; None for no tiles, or when one holds it all.

        Raises ValueError where there are to be none and they are to go on around the edge.
        """
        if not self.size:
            if wrap != "none":
                raise ValueError("Going on around the edge needs tiles: set tiling to auto or custom, or wrap to none.")
            return None
        return vosr_tile_grid(height, width, self.size, self.overlap, downscale, PATCH_SIZE, wrap)


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
    wrap: Wrap = "none"
    """Over which edges the picture goes on at its other side; that of a TileLayout comes with it."""

    def __post_init__(self):
        check_vae_tile(self.vae_tile)
        if self.weak_strength is not None and not 0 <= self.weak_strength <= 1:
            raise ValueError(
                f"The weak strength must be between 0 and 1, or -1 for the model's own, got {self.weak_strength:g}."
            )
        if isinstance(self.tiles, TileLayout) and self.wrap not in ("none", self.tiles.grid.wrap):
            raise ValueError(
                f"{self.node}: wrap is {self.wrap}, and the connected Tile Grid's is {self.tiles.grid.wrap}. Set it on "
                "Tile Grid."
            )

    @property
    def edges(self) -> Wrap:
        """Over which edges the picture goes on."""
        return self.tiles.grid.wrap if isinstance(self.tiles, TileLayout) else self.wrap

    def grid(self, height: int, width: int, downscale: int) -> TileGrid | None:
        """Tiles over a latent of height x width, None for none."""
        if isinstance(self.tiles, TileLayout):
            return grid_of_layout(self.tiles, height, width, downscale, self.node)
        return self.tiles.grid(height, width, downscale, self.wrap)


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
        return encode_around(vae, image, options.vae_tile, options.edges)
    around = wrapped_axes(options.edges)
    seen = continued(image, (1, 2), around, vae.spacial_compression_encode())
    mean, logvar = (closed(part, (2, 3), around) for part in encode_moments(vae, seen, options.vae_tile))
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    latent = mean + torch.exp(0.5 * logvar) * noise
    require_image_latent(latent)
    return latent


def cut(image: Tensor, box: Box, downscale: int, wrap: Wrap = "none") -> Tensor:
    """A tile's part `[B, 3, h, w]` of `[B, H, W, 3]`.

    Where it is beyond the picture the border is repeated, or over the edges of `wrap` the picture goes on. box: in
    latent cells of `downscale` pixels.
    """
    part = image.movedim(-1, 1)
    sides = ((2, box.top, box.height), (3, box.left, box.width))
    for (dim, start, size), goes_on in zip(sides, wrapped_axes(wrap), strict=True):
        cells, length = torch.arange(start * downscale, (start + size) * downscale), image.shape[dim - 1]
        cells = cells % length if goes_on else cells.clamp(max=length - 1)
        part = part.index_select(dim, cells.to(image.device))
    return part


def tile_features(
    vision: ClipVision, image: Tensor, boxes: Sequence[Box], downscale: int, wrap: Wrap = "none"
) -> list[Tensor]:
    """Vision features `[B, M, E]` of some tiles of images `[B, H, W, 3]`; see cut."""
    per_tile: list[Tensor] = []
    bar = NodeBar(len(boxes))
    for first in range(0, len(boxes), FEATURE_TILES):
        comfy.model_management.throw_exception_if_processing_interrupted()
        some = boxes[first : first + FEATURE_TILES]
        crops = torch.cat([cut(image, box, downscale, wrap) for box in some]).movedim(1, -1)
        with bar.stage(len(some)):
            per_tile += encode_vosr_features(vision, crops).chunk(len(some))
    return per_tile


class StreamedFeatures(Sequence[dict[str, Any]]):
    """The options of each tile, its features among them, made when the tile's turn comes and not kept after it."""

    def __init__(self, vision: ClipVision, image: Tensor, grid: TileGrid, downscale: int):
        self.vision, self.image, self.boxes, self.downscale = vision, image, grid.boxes, downscale
        self.wrap = grid.wrap
        self.first = 0
        self.held: list[Tensor] = []
        self.hold(0)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[tile] for tile in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if not self.first <= index < self.first + len(self.held):
            self.hold(index // STREAMED_TILES * STREAMED_TILES)
        return {"cross_attn": self.held[index - self.first], ONCE: True}

    def hold(self, first: int) -> None:
        """Those from `first` on. What the sampler runs stays loaded."""
        self.held, self.first = [], first
        running = comfy.model_management.loaded_models(only_currently_used=True)
        boxes = self.boxes[first : first + STREAMED_TILES]
        self.held = tile_features(self.vision, self.image, boxes, self.downscale, self.wrap)
        if running:
            comfy.model_management.load_models_gpu(running)


def reads_once(model: Model, steps: int) -> bool:
    """Whether a run of so many steps reads each tile's features once, in the order of the tiles and in one thread.

    Several devices ask for different tiles at once, while none may load DINOv2 in the place of what another one runs.
    """
    return steps == 1 and not model.get_additional_models_with_key("multigpu")


def is_streamed(tiles: int, once: bool) -> bool:
    """Whether the features of so many tiles are made when their turn comes. once: of reads_once."""
    return once and tiles > HELD_TILES


def wire(
    latent: Tensor,
    strength: float | None,
    features: Tensor,
    grid: TileGrid | None,
    tiles: Sequence[Tensor] | StreamedFeatures | None,
) -> Conditioning:
    """A VOSR CONDITIONING. features `[B, M, E]`; tiles: those of each tile of `grid`, None where the canvas's do."""
    options: dict[str, Any] = {"concat_latent_image": latent, STRENGTH: strength}
    if grid is not None:
        own: Sequence[dict[str, Any]]
        if isinstance(tiles, StreamedFeatures):
            own = tiles
        else:
            own = [{}] * len(grid) if tiles is None else [{"cross_attn": tile} for tile in tiles]
        # One shape for all: the tiles that run together are known without making their features.
        options = with_tile_options(options, TileOptions(grid, own, alike=isinstance(tiles, StreamedFeatures)))
    return [[features, options]]


def build_conditioning(
    image: Tensor, vae: VAE, vision: ClipVision | None, options: EncodeOptions, once: bool = False
) -> VOSRConditioning:
    """Conditionings of images `[B, H, W, 3 or 4]` in 0..1, already at the size of the result; alpha is left out.

    vae: the autoencoder the model was trained with. vision: a DINOv2, or None for models without. once: they are for
    one run that reads them once (see reads_once), so that features of many tiles need not be held together. Raises
    ValueError for images that are not finite, for a VAE of video latents and for tiles laid over another size.
    """
    image = checked_image(image)[..., :3]
    height, width = image.shape[1:3]
    downscale = vae.spacial_compression_encode()
    multiple = downscale * PATCH_SIZE
    rows, columns = (-(-side // multiple) * PATCH_SIZE for side in (height, width))
    grid = options.grid(rows, columns, downscale)
    bar, whole = NodeBar(1 if vision is None else 2), None
    tiles: Sequence[Tensor] | StreamedFeatures | None = None
    with bar.stage():
        latent = encode_latent(vae, padded_for(image, multiple, options.edges, options.node), options)
    if vision is not None:
        with bar.stage():
            if grid is None:
                whole = encode_vosr_features(vision, pad_to_multiple(image, multiple))
            elif is_streamed(len(grid), once):
                tiles = StreamedFeatures(vision, image, grid, downscale)
            else:
                tiles = tile_features(vision, image, grid.boxes, downscale, grid.wrap)
    known = tiles.held[0] if isinstance(tiles, StreamedFeatures) else tiles[0] if tiles else whole
    # All-zero features give equal context tokens, so one stands for all.
    blank = image.new_zeros(image.shape[0], 1, 0) if known is None else torch.zeros_like(known[:, :1])
    return VOSRConditioning(
        full=wire(latent, 1.0, blank if whole is None else whole, grid, tiles),
        weak=wire(latent, options.weak_strength, blank, grid, None),
        latent={"samples": torch.zeros_like(latent), "downscale_ratio_spacial": downscale},
        width=width,
        height=height,
    )
