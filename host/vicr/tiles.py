"""VICR on images larger than a panel: tiles that are diptychs, merged at every step (arXiv 2606.00704).

The state is the latent of the whole canvas. A tile is [LQ crop | target crop] at one box of both panels, and each half
of its prediction is merged over its own panel; its masked image is its own diptych, encoded by itself. Text, guidance
and the bridge's vector are the whole image's, so that every tile knows of all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from einops import rearrange
from torch import Tensor

from ...models.tiles.grid import Panes, TileGrid
from ...models.tiles.layout import CELL, require_tile
from ...models.tiles.weights import Weights
from ...models.vicr.diptych import PANEL_MULTIPLE, Diptych, empty_target, seam_dim, split, target_mask
from ..images import checked_image
from ..progress import NodeBar
from ..tiling.conditions import TileOptions, with_tile_options
from ..tiling.patch_prompts import prompts_of, text_options
from ..tiling.sampling import Tiling
from ..types import VAE, Conditioning, Entry, Model

NODE = "Diptych Tiles"

ALIGN = PANEL_MULTIPLE // CELL


@dataclass(frozen=True)
class DiptychTileOptions:
    """How a diptych is tiled. Raises ValueError for a tile that cannot be laid (see require_tile)."""

    tile: int = 512
    """Side of a tile's panel in pixels."""
    overlap: int = 128
    """Pixels of a panel that neighbours share, at least."""
    weights: Weights = "gaussian"
    """Of the mean where tiles overlap."""
    per_forward: int = 0
    """Tiles run together, 0 to decide by free memory."""
    preview: bool = False
    """Show the tiles as they are done."""

    def __post_init__(self):
        require_tile(self.tile, self.overlap, ALIGN)

    def grid(self, diptych: Diptych) -> TileGrid:
        """Tiles over one panel, in latent cells."""
        size = (diptych.panel_height // CELL, diptych.panel_width // CELL)
        tile, overlap = self.tile // CELL, self.overlap // CELL
        return TileGrid.fitted(size, (tile, tile), (overlap, overlap), ALIGN)


@dataclass(frozen=True, eq=False)
class TiledDiptych:
    """What a sampler needs."""

    model: Model
    """Works in tiles."""
    positive: Conditioning
    """For that model, as is the negative."""
    negative: Conditioning
    latent: dict[str, Any]
    """Zeros of the whole canvas."""
    tile_latent: dict[str, Any]
    """Zeros of one tile's diptych, whose size sets the schedule."""
    tiles: int
    """How many."""


def lq_panel(canvas: Tensor, diptych: Diptych) -> Tensor:
    """The LQ panel `[B, 3, H, W]` of canvases `[B, H, W, 3]`. Raises ValueError for a canvas of another size."""
    canvas = checked_image(canvas, f"{NODE}: ")
    found, expected = tuple(canvas.shape[1:3]), (diptych.canvas_height, diptych.canvas_width)
    if found != expected or canvas.shape[-1] != 3:
        raise ValueError(
            f"{NODE}: the canvas is {list(canvas.shape)}, its record says {expected[0]}x{expected[1]} pixels (height x "
            "width) and 3 channels. Connect canvas and diptych of the same Diptych Builder."
        )
    return split(rearrange(canvas, "b h w c -> b c h w"), diptych.layout)[0]


def tile_images(canvas: Tensor, diptych: Diptych, options: DiptychTileOptions) -> list[Tensor]:
    """The LQ side of every tile, `[B, h, w, 3]` each."""
    panel = lq_panel(canvas, diptych)
    return [rearrange(box.crop(panel, CELL), "b c h w -> b h w c") for box in options.grid(diptych).boxes]


def encode_tiles(vae: VAE, panel: Tensor, diptych: Diptych, grid: TileGrid) -> Iterator[Tensor]:
    """Latents `[B, C, h, w]` of the tiles' diptychs, as the VAE encodes them (not scaled).

    Every tile is encoded by itself: what it knows of its surroundings is what a panel of its own would hold.
    """
    bar = NodeBar(len(grid))
    for box in grid.boxes:
        comfy.model_management.throw_exception_if_processing_interrupted()
        crop = box.crop(panel, CELL)
        mask = target_mask(crop.shape[-2], crop.shape[-1], diptych.layout)
        # The host's arithmetic for masked pixels, to the bit: a tile that is the whole canvas is the untiled method.
        pixels = (empty_target(crop, diptych.layout) - 0.5) * (1.0 - mask[:, None]) + 0.5
        with bar.stage():
            encoded = vae.encode(rearrange(pixels, "b c h w -> b h w c"))
        yield encoded


def check_latents(model: Model, vae: VAE, latent: Tensor, expected: tuple[int, int]) -> None:
    """Raises ValueError unless tile latents suit the model and the record's cells."""
    channels = model.model.latent_format.latent_channels
    if latent.ndim != 4 or latent.shape[1] != channels or tuple(latent.shape[-2:]) != expected:
        raise ValueError(
            f"{NODE}: the VAE makes latents {list(latent.shape)} of a tile, the model reads {channels} channels and "
            f"{expected[0]}x{expected[1]} cells (8 pixels each). Use the VAE of the model: ae.safetensors for FLUX.1."
        )


def check_model(model: Model, latent: Tensor, mask: Tensor) -> None:
    """Raises ValueError for a model that reads no masked image."""
    concat = model.get_model_object("concat_cond")
    if concat(noise=latent, device=latent.device, concat_latent_image=latent, concat_mask=mask) is None:
        raise ValueError(
            f"{NODE}: this model ({type(model.model).__name__}) reads no masked image, so it cannot complete a "
            "diptych. Load FLUX.1-Fill-dev, or another inpainting model of its kind."
        )


def with_tiles(
    conditioning: Conditioning, grid: TileGrid, images: list[dict[str, Any]], prompts: list[Entry] | None = None
) -> Conditioning:
    """A conditioning whose tiles have their own masked images and, where given, their own text."""
    if prompts is not None and len(conditioning) != 1:
        raise ValueError(
            f"{NODE}: the positive conditioning combines {len(conditioning)} prompts, which tile prompts would all "
            "replace. Connect a single one."
        )
    out = []
    for entry in conditioning:
        if entry[1].get("area") is not None:
            raise ValueError(
                f"{NODE}: a conditioning is restricted to an area of the canvas. A tile sees parts of both panels: "
                "use tile_prompts to say what is where."
            )
        texts = [{}] * len(grid) if prompts is None else [text_options(entry, prompt) for prompt in prompts]
        own = [{**image, **text} for image, text in zip(images, texts, strict=True)]
        kept = {key: value for key, value in entry[1].items() if key not in ("concat_latent_image", "concat_mask")}
        out.append([entry[0], with_tile_options(kept, TileOptions(grid, own))])
    return out


def zeroed(conditioning: Conditioning) -> Conditioning:
    """No text: tokens and pooled output zero, all else as it is."""
    return [
        [torch.zeros_like(tokens), {**options, "pooled_output": torch.zeros_like(options["pooled_output"])}]
        if options.get("pooled_output") is not None
        else [torch.zeros_like(tokens), dict(options)]
        for tokens, options in conditioning
    ]


def tile_diptych(
    model: Model,
    positive: Conditioning,
    negative: Conditioning | None,
    vae: VAE,
    canvas: Tensor,
    diptych: Diptych,
    options: DiptychTileOptions,
    tile_prompts: Sequence[Conditioning] | None = None,
) -> TiledDiptych:
    """Everything a sampler needs to complete a diptych of any size in tiles.

    canvas: `[B, H, W, 3]` in 0..1, as built with the record. negative: None for no text. tile_prompts: text of every
    tile of the positive, row by row (see prompts_of). With one tile the result is the untiled model's to the bit.
    """
    panel = lq_panel(canvas, diptych)
    grid, panes = options.grid(diptych), Panes(2, seam_dim(diptych.layout))
    tiling = Tiling(
        grid, panes, options.weights, options.per_forward, own_images=True, preview=options.preview, node=NODE
    )
    tiled = tiling.apply(model)
    prompts = None if not tile_prompts else prompts_of(tile_prompts, len(grid), NODE)
    mask = target_mask(grid.tile_height * CELL, grid.tile_width * CELL, diptych.layout)[:, None]
    images: list[dict[str, Any]] = []
    for latent in encode_tiles(vae, panel, diptych, grid):
        if not images:
            check_latents(model, vae, latent, tiling.tile_size)
            check_model(model, latent, mask)
        images.append({"concat_latent_image": latent, "concat_mask": mask})
    first = images[0]["concat_latent_image"]
    zeros = first.new_zeros(*first.shape[:2], *tiling.canvas_size)
    return TiledDiptych(
        model=tiled,
        positive=with_tiles(positive, grid, images, prompts),
        negative=with_tiles(zeroed(positive) if negative is None else negative, grid, images),
        latent={"samples": zeros, "downscale_ratio_spacial": CELL},
        tile_latent={"samples": torch.zeros_like(first), "downscale_ratio_spacial": CELL},
        tiles=len(grid),
    )
