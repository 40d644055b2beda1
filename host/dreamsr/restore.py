"""DreamSR as a whole: degradation removal, then the texture stage from its result (arXiv 2605.15682)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...models.color import Method, align_colors
from ...models.dreamsr.schedule import REMOVAL_TIME, TEXTURE_START, TEXTURE_STEPS, texture_sigmas
from ...models.image import pad_to_multiple, upscale
from ...models.tiles.grid import TileGrid
from ...models.tiles.layout import TileLayout
from ...models.tiles.weights import Weights
from ..images import check_image, decode_latent, encode_image
from ..tiling.sampling import Tiling
from ..types import Conditioning
from .control.apply import apply_mm_control
from .control.conditioning import ApplyOptions
from .control.loader import MMControl
from .control.patch_prompts import with_patch_prompts
from .lora import with_forward_lora
from .removal import remove_degradation, require_flow

NODE = "DreamSR Restore"

IMAGE_MULTIPLE = 16
"""Pixels: FLUX reads latents, of 8 pixels a cell, in patches of 2 x 2."""


@dataclass(frozen=True)
class StageOptions:
    """removal_time: t_s of the degradation removal. start, steps, shift: the texture stage's schedule. weights: of the
    mean where tiles overlap. tiles_per_batch: 0 to decide by free memory. control: how the MM-ControlNet acts."""

    removal_time: float = REMOVAL_TIME
    start: float = TEXTURE_START
    steps: int = TEXTURE_STEPS
    shift: float = 1.0
    weights: Weights = "uniform"
    tiles_per_batch: int = 0
    control: ApplyOptions = field(default_factory=ApplyOptions)


@dataclass(frozen=True, eq=False)
class AccelerationLoRA:
    """The LoRA of the degradation removal. name: its file's, for messages."""

    weights: Mapping[str, Tensor]
    name: str
    strength: float = 1.0


@dataclass(frozen=True, eq=False)
class DreamSR:
    """The method on one model. control and lora may be None: the paper's ablations.

    positive: the global prompt with its guidance. grid: tiles over the latent, None for one tile that is all of it.
    patch_prompts: one conditioning per tile of `grid`, or None for the global prompt everywhere.
    """

    model: Any
    positive: Conditioning
    grid: TileGrid | None
    options: StageOptions = StageOptions()
    control: MMControl | None = None
    lora: AccelerationLoRA | None = None
    patch_prompts: Sequence[Conditioning] | None = None

    def guider(self, latent: dict[str, Any]) -> comfy.samplers.CFGGuider:
        """Tiled guidance in which the MM-ControlNet looks at `latent`, a host LATENT."""
        model, positive = self.model, self.positive
        if self.control is not None:
            model, positive, _ = apply_mm_control(
                model, self.control, positive, None, latent, None, self.options.control
            )
        height, width = latent["samples"].shape[-2:]
        grid = self.grid or TileGrid(height, width, height, width, 0)
        if self.patch_prompts:
            positive = with_patch_prompts(positive, grid, self.patch_prompts, node=NODE)
        tiling = Tiling(grid, weights=self.options.weights, per_forward=self.options.tiles_per_batch, node=NODE)
        guider = comfy.samplers.CFGGuider(tiling.apply(model))
        guider.inner_set_conds({"positive": positive})
        return guider

    def clean(self, latent: Tensor) -> Tensor:
        """z_dr of `latent` `[B, C, H, W]`, both as host LATENTs hold them; the latent itself without a LoRA."""
        if self.lora is None:
            return latent
        guider = self.guider({"samples": latent})
        model = with_forward_lora(guider.model_patcher, self.lora.weights, self.lora.strength, self.lora.name)
        return remove_degradation(guider, model, latent, self.options.removal_time)

    def texture(self, clean: Tensor, noise: Tensor, seed: int) -> Tensor:
        """The texture stage from z_dr: eq. 3, then Euler steps in which the MM-ControlNet looks at z_dr."""
        options, guider = self.options, self.guider({"samples": clean})
        sigmas = texture_sigmas(options.steps, options.start, options.shift)
        return guider.sample(
            noise,
            clean,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            callback=latent_preview.prepare_callback(guider.model_patcher, options.steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )

    def restore(self, latent: Tensor, noise: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """(restored, z_dr) of an encoded LQ image, all `[B, C, H, W]` as host LATENTs hold them.

        noise: the texture stage's. seed: for samplers' own draws; Euler makes none.
        """
        require_flow(self.model)
        clean = self.clean(latent)
        return self.texture(clean, noise, seed), clean


@dataclass(frozen=True)
class ImageOptions:
    """width, height: of the result in pixels. tile, overlap: of the tiles in pixels, unless `layout` says. seed: item i
    of a batch uses seed + i. vae_tile: 0 to decide by free memory. color: colours taken from the input."""

    width: int
    height: int
    tile: int = 512
    overlap: int = 128
    layout: TileLayout | None = None
    seed: int = 0
    vae_tile: int = 0
    color: Method = "none"

    def tiles_over(self, padded: Tensor) -> TileGrid:
        """Tiles over an image `[B, H, W, C]`. Raises ValueError for a layout over another size."""
        height, width = padded.shape[1:3]
        if self.layout is None:
            return TileLayout.fitted(height, width, self.tile, self.overlap).grid
        if self.layout.image_size != (height, width):
            raise ValueError(
                f"{NODE}: the tile grid is for {self.layout.image_size[1]}x{self.layout.image_size[0]} pixels, the "
                f"result is {self.width}x{self.height}"
                + (f", padded to {width}x{height}" if (height, width) != (self.height, self.width) else "")
                + f". Give Tile Grid the image at the size of the result, both sides multiples of {IMAGE_MULTIPLE}."
            )
        return self.layout.grid


def restore_images(method: DreamSR, vae, images: Tensor, options: ImageOptions) -> Tensor:
    """Restore images `[B, h, w, 3 or 4]` in 0..1 with `method`, whose grid is laid anew; one after another.

    Alpha is enlarged by itself and rejoined. Raises ValueError for images, parts or options that do not fit; an
    interrupt ends within one call of the model.
    """
    check_image(images)
    results = []
    for index, image in enumerate(images.split(1)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        results.append(restore_image(method, vae, image, options, (options.seed + index) % 2**64))
    return torch.cat(results)


def restore_image(method: DreamSR, vae, image: Tensor, options: ImageOptions, seed: int) -> Tensor:
    """One image `[1, h, w, 3 or 4]` -> `[1, height, width, 3 or 4]`."""
    enlarged = upscale(image, options.width, options.height)
    padded = pad_to_multiple(enlarged[..., :3], IMAGE_MULTIPLE)
    latent = encode_image(vae, padded, options.vae_tile)
    noise = comfy.sample.prepare_noise(latent, seed)
    restored, _ = replace(method, grid=options.tiles_over(padded)).restore(latent, noise, seed)
    decoded = decode_latent(vae, restored, options.vae_tile)[:, : options.height, : options.width, :3]
    decoded = align_colors(decoded, enlarged[..., :3].to(decoded), options.color)
    return torch.cat([decoded, enlarged[..., 3:].to(decoded)], dim=-1)
