"""DreamSR as a whole: degradation removal, then the texture stage from its result (arXiv 2605.15682)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from ...models.dreamsr.schedule import REMOVAL_TIME, TEXTURE_START, TEXTURE_STEPS, texture_sigmas
from ...models.tiling import TileGrid, Weights
from ..tiling.prompts import Conditioning
from ..tiling.sampling import Tiling
from .acceleration import remove_degradation, require_flow
from .apply import apply_mm_control
from .conditioning import ApplyOptions
from .forward_lora import with_forward_lora
from .loader import MMControl
from .patch_prompts import with_patch_prompts

NODE = "DreamSR Restore"


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

    positive: the global prompt with its guidance. patch_prompts: one conditioning per tile of `grid`, or None for the
    global prompt everywhere.
    """

    model: Any
    positive: Conditioning
    grid: TileGrid
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
        if self.patch_prompts:
            positive = with_patch_prompts(positive, self.grid, self.patch_prompts, node=NODE)
        tiling = Tiling(
            self.grid, weights=self.options.weights, per_forward=self.options.tiles_per_batch, node=NODE
        )
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
            noise, clean, comfy.samplers.sampler_object("euler"), sigmas,
            callback=latent_preview.prepare_callback(guider.model_patcher, options.steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
        )

    def restore(self, latent: Tensor, noise: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """(restored, z_dr) of an encoded LQ image, all `[B, C, H, W]` as host LATENTs hold them.

        noise: the texture stage's. seed: for samplers' own draws; Euler makes none.
        """
        require_flow(self.model)
        clean = self.clean(latent)
        return self.texture(clean, noise, seed), clean
