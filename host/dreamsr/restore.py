"""DreamSR as a whole: degradation removal, then the texture stage from its result (arXiv 2605.15682)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from ...models.color import Method, align_colors
from ...models.dreamsr.schedule import REMOVAL_TIME, TEXTURE_START, TEXTURE_STEPS, texture_sigmas
from ...models.image import pad_to_multiple, upscale
from ...models.tile_check.blend import nearest_tiles, part_grid
from ...models.tiles.grid import Box, TileGrid, Wrap, wrapped_axes
from ...models.tiles.layout import CELL, TileLayout
from ...models.tiles.weights import Weights
from ..families import require_flux_dev, require_vae_of
from ..images import Results, checked_image, with_alpha_of
from ..live_tiles import LIVE, LiveTiles, joined, live_tiles, minutes, numbered, tell
from ..memory import give_back_freed
from ..progress import NodeBar, new_bar, show_on_node
from ..tile_repair import Pictures, TileRepair, repair_tiles, require_no_repair, scale_of, with_nan, without_nan
from ..tiling.sampling import Tiling
from ..types import VAE, Conditioning, Model
from ..vae_wrap import decode_around, encode_around, require_meeting
from .control.apply import apply_mm_control
from .control.conditioning import ApplyOptions
from .control.loader import MMControl
from .control.patch_prompts import with_patch_prompts
from .lora import AccelerationLoRA, with_forward_lora
from .removal import remove_degradation, require_flow

NODE = "DreamSR Restore"

IMAGE_MULTIPLE = 16
"""Pixels: FLUX reads latents, of 8 pixels a cell, in patches of 2 x 2."""


ENCODING_SHARE, STEP_SHARE, DECODING_SHARE = 2.0, 1.0, 2.0
"""Of the bar, next to one another."""

PIXELS_SHARE = 0.05
"""Of enlarging the picture and of aligning its colours, next to them."""

REPAIR_SHARE = 0.5
"""Of the bar, next to the restoration."""

LESS_CREATIVE = 0.8
"""What a round leaves of the noise that the texture stage starts from, where bad tiles are restored less creatively."""


@dataclass(frozen=True, eq=False)
class DreamSR:
    """The method on one model; `control` and `lora` None are the paper's ablations."""

    model: Model
    positive: Conditioning
    """The global prompt, with its guidance."""
    control: MMControl | None = None
    control_options: ApplyOptions = field(default_factory=ApplyOptions)
    lora: AccelerationLoRA | None = None
    patch_prompts: Sequence[Conditioning] | None = None
    """One conditioning per tile, row by row; None for the global prompt everywhere."""
    removal_time: float = REMOVAL_TIME
    """t_s of the degradation removal."""
    texture_start: float = TEXTURE_START
    texture_steps: int = TEXTURE_STEPS
    weights: Weights = "uniform"
    """Of the mean where tiles overlap."""
    tiles_per_batch: int = 0
    """0 to decide by free memory."""


def tiled_guider(method: DreamSR, grid: TileGrid, latent: Tensor) -> comfy.samplers.CFGGuider:
    """Guidance in tiles of `grid`, in which the MM-ControlNet looks at `latent` `[B, C, H, W]`, as host LATENTs are."""
    model, positive = method.model, method.positive
    if method.control is not None:
        model, positive, _ = apply_mm_control(
            model, method.control, positive, None, {"samples": latent}, None, method.control_options
        )
    if method.patch_prompts:
        positive = with_patch_prompts(positive, grid, method.patch_prompts, node=NODE)
    tiling = Tiling(grid, weights=method.weights, per_forward=method.tiles_per_batch, node=NODE)
    guider = comfy.samplers.CFGGuider(tiling.apply(model))
    guider.inner_set_conds({"positive": positive})
    return guider


def clean_latent(method: DreamSR, grid: TileGrid, latent: Tensor, live: LiveTiles | None = None) -> Tensor:
    """z_dr of `latent` `[B, C, H, W]`, both as host LATENTs hold them; the latent itself without a LoRA."""
    if method.lora is None:
        return latent
    guider = tiled_guider(method, grid, latent)
    model = with_forward_lora(guider.model_patcher, method.lora)
    return remove_degradation(guider, model, latent, method.removal_time, live)


def add_texture(
    method: DreamSR, grid: TileGrid, clean: Tensor, noise: Tensor, seed: int, live: LiveTiles | None = None
) -> Tensor:
    """The texture stage from z_dr: eq. 3, then Euler steps in which the MM-ControlNet looks at z_dr.

    noise: `[B, C, H, W]`. seed: for samplers' own draws; Euler makes none. live: shows the run, in place of the host's
    previews.
    """
    guider = tiled_guider(method, grid, clean)
    callback = latent_preview.prepare_callback(guider.model_patcher, method.texture_steps) if live is None else None
    if live is not None:
        guider.model_options = {**guider.model_options, LIVE: live}
    return guider.sample(
        noise,
        clean,
        comfy.samplers.sampler_object("euler"),
        texture_sigmas(method.texture_steps, method.texture_start),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )


def tiles_over(
    width: int, height: int, tile: int, overlap: int, layout: TileLayout | None = None, wrap: Wrap = "none"
) -> TileGrid:
    """Tiles over a result of `width` x `height`, padded to IMAGE_MULTIPLE; all in pixels.

    layout: takes the place of tile and overlap. wrap: over which edges the picture goes on at its other side. Raises
    ValueError when the layout is over another size or wraps in another way, and for sides that cannot meet.
    """
    padded = height + -height % IMAGE_MULTIPLE, width + -width % IMAGE_MULTIPLE
    if layout is not None and wrap not in ("none", layout.grid.wrap):
        raise ValueError(
            f"{NODE}: wrap is {wrap}, and the connected Tile Grid's is {layout.grid.wrap}. Set it on Tile Grid."
        )
    require_meeting(width, height, IMAGE_MULTIPLE, wrap if layout is None else layout.grid.wrap, NODE)
    if layout is None:
        return TileLayout.fitted(*padded, tile, overlap, wrap=wrap).grid
    if layout.image_size != padded:
        raise ValueError(
            f"{NODE}: the tile grid is for {layout.image_size[1]}x{layout.image_size[0]} pixels, the result is "
            f"{width}x{height}"
            + (f", padded to {padded[1]}x{padded[0]}" if padded != (height, width) else "")
            + f". Give Tile Grid the image at the size of the result, both sides multiples of {IMAGE_MULTIPLE}."
        )
    return layout.grid


def restore_images(
    method: DreamSR,
    vae: VAE,
    images: Tensor,
    size: tuple[int, int],
    grid: TileGrid,
    seed: int = 0,
    vae_tile: int = 0,
    color: Method = "none",
    repair: TileRepair | None = None,
    preview: bool = True,
) -> Tensor:
    """Restore images `[B, h, w, 3 or 4]` in 0..1, one after another, to `[B, height, width, 3 or 4]`.

    size: (width, height) of the result in pixels. grid: of `tiles_over` that size. seed: item i uses seed + i.
    vae_tile: pixels, 0 to decide by free memory. color: how colours are taken from the input. repair: what happens to
    bad tiles, None to look for none. preview: show the tiles as they are done. Alpha is enlarged by itself and
    rejoined. Raises ValueError for images or parts that do not fit; an interrupt ends within one call of the model.
    """
    images = checked_image(images)
    require_flux_dev(NODE, method.model)
    require_flow(method.model)
    require_vae_of(NODE, method.model, vae)
    require_no_repair(repair is not None, grid.wrap, NODE)
    results, started = Results(len(images)), time.monotonic()
    bar = NodeBar(len(images) * (PIXELS_SHARE + 1 + (0 if repair is None else REPAIR_SHARE)))
    for index, image in enumerate(images.split(1)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        with bar.stage(PIXELS_SHARE):
            enlarged = upscale(image, *size, wrapped_axes(grid.wrap), new_bar())
        rgb = enlarged[..., :3]
        run = ItemRun(method, vae, grid, (seed + index) % 2**64, vae_tile, color, repair)
        seen = Seen(rgb, index, len(images)) if preview else None
        with bar.stage():
            restored = run.restore(rgb, seen)
        if repair is not None:
            with bar.stage(REPAIR_SHARE):
                restored = run.repaired(Pictures(restored, rgb, scale_of(image, *size)), repair)
        results.add(with_alpha_of(enlarged, restored, enlarged is not image))
    if preview and repair is None:
        show_on_node(f"done in {minutes(time.monotonic() - started)}")
    return results.images


@dataclass(frozen=True, eq=False)
class Seen:
    """What is shown of the restoration of one image of a batch."""

    rgb: Tensor
    """`[1, H, W, 3]`, what it starts from."""
    index: int
    count: int

    @property
    def label(self) -> str:
        return numbered(self.index, self.count)

    def of(self, method: DreamSR, stage: str, steps: int, after: int) -> LiveTiles:
        """Of a stage of so many steps, with so many to come after it."""
        each = method.texture_steps + (method.lora is not None)
        live = live_tiles(
            method.model, joined(self.label, stage), (after + each * (self.count - self.index - 1)) / steps
        )
        live.start_from(self.rgb, CELL)
        return live


@dataclass(frozen=True, eq=False)
class ItemRun:
    """The restoration of one image, or of a part of one."""

    method: DreamSR
    vae: VAE
    grid: TileGrid
    """In latent cells."""
    seed: int
    vae_tile: int
    color: Method
    repair: TileRepair | None
    redo: bool = False
    """Whether it is a bad tile that is restored again."""

    def restore(self, rgb: Tensor, seen: Seen | None = None) -> Tensor:
        """An image `[1, H, W, 3]` at the size of the result -> the same restored."""
        height, width = rgb.shape[1:3]
        method, removal, texture = self.method, int(self.method.lora is not None), self.method.texture_steps
        bar = NodeBar(ENCODING_SHARE + STEP_SHARE * (removal + texture) + DECODING_SHARE + PIXELS_SHARE)
        with bar.stage(ENCODING_SHARE):
            tell(seen, "reading the picture")
            latent = encode_around(self.vae, pad_to_multiple(rgb, IMAGE_MULTIPLE), self.vae_tile, self.grid.wrap)
        noise = comfy.sample.prepare_noise(latent, self.seed)
        with bar.stage(STEP_SHARE * removal):
            live = seen.of(method, "removing damage", 1, texture) if seen is not None and removal else None
            clean = clean_latent(method, self.grid, latent, live)
        with bar.stage(STEP_SHARE * texture):
            live = None if seen is None else seen.of(method, "", texture, 0)
            restored, holes = add_texture(method, self.grid, clean, noise, self.seed, live), None
        if self.repair is not None:
            restored, holes = without_nan(restored, latent, self.redo)
        # As large as a quarter of the picture together.
        del latent, noise, clean
        give_back_freed()
        made_by = "FLUX, or its MM-ControlNet or LoRA,"
        with bar.stage(DECODING_SHARE):
            tell(seen, "decoding the picture")
            decoded = decode_around(self.vae, restored, self.vae_tile, made_by, self.grid.wrap)
        decoded, around = decoded[:, :height, :width, :3], wrapped_axes(self.grid.wrap)
        with bar.stage(PIXELS_SHARE):
            like = rgb.to(decoded)
            aligned = align_colors(decoded, like, self.color, in_place=True, around=around, told=new_bar())
        return with_nan(aligned, holes, CELL)

    def repaired(self, pictures: Pictures, repair: TileRepair) -> Tensor:
        """The restored image with its bad tiles restored again, each with its surroundings as an image of its own."""

        def again(window: Box, lq: Tensor, round_number: int) -> Tensor:
            cells = Box(window.top // CELL, window.left // CELL, window.height // CELL, window.width // CELL)
            part = part_grid(self.grid, cells)
            method = self.method
            if method.patch_prompts:
                prompts = [method.patch_prompts[tile] for tile in nearest_tiles(self.grid, part, cells)]
                method = replace(method, patch_prompts=prompts)
            if repair.less_creative:
                method = replace(method, texture_start=method.texture_start * LESS_CREATIVE**round_number)
            seed = (self.seed + round_number) % 2**64
            return replace(self, method=method, grid=part, seed=seed, redo=True).restore(lq)

        return repair_tiles(pictures, self.grid.scaled(CELL), self.method.weights, repair, again, NODE)
