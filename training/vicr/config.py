"""What the YAML of a VICR run holds. Defaults are those of the paper (arXiv 2606.00704) where it says any."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...models.vicr.diptych import PANEL_MULTIPLE
from ..data.config import DataSettings
from ..engine.config import Count, OptimizerSettings, RunConfig, Settings, UserPath
from ..flux.config import ModelFiles


class VICRFiles(ModelFiles):
    """FLUX.1 Fill's parts, and CLIP's image side, which is never taken from FLUX's folder."""

    clip_vision: UserPath | None = None
    """CLIP ViT-L/14's image side: clip_vision_l.safetensors, or the folder of clip-vit-large-patch14. Not needed
    without a bridge."""


class BridgeSettings(Settings):
    """The Vision-Context Bridge."""

    joins: Literal["modulation", "pooled", "nothing"] = "modulation"
    """What its vector is added to: FLUX's modulation vector, as the paper's parameter count says, or the pooled text.
    nothing: train the LoRA alone, an ablation."""
    hidden: PositiveInt | None = None
    """Width between its projections; null: that of FLUX, 3072."""
    file: UserPath | None = None
    """A bridge to start from, as New Vision-Context Bridge or an earlier run writes it; null: a new one."""


class TimeSettings(Settings):
    """Which noise levels are trained. The paper does not say."""

    logit_normal: tuple[float, PositiveFloat] | None = None
    """Mean and standard deviation of logit(t) before the shift; null: t is uniform."""
    shift: bool = True
    """Shift the levels as FLUX's sampler does for the diptych's size, so that uniform t are the levels it visits."""


class SamplingSettings(Settings):
    """How validation restores."""

    steps: PositiveInt = 30


class ExportSettings(Settings):
    """The two files for the nodes: loras/<name>.safetensors and model_patches/<name>_bridge.safetensors."""

    name: str = "vicr"
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"


class VICROptimizer(OptimizerSettings):
    name: Literal["adamw", "adamw8bit", "muon", "prodigy"] = "prodigy"
    learning_rate: Annotated[float, Field(gt=0)] = 1.0


class VICRConfig(RunConfig):
    """A run of VICR: LoRA and bridge on FLUX.1 Fill."""

    steps: PositiveInt = 15_000
    models: VICRFiles
    base: Literal["full", "int8", "nf4"] = "full"
    """How FLUX's frozen weights are kept: in the run's precision, or quantised by bitsandbytes (a GPU)."""
    rank: PositiveInt = 32
    """Of the LoRA; its factor is 1."""
    bridge: BridgeSettings = BridgeSettings()
    data: DataSettings
    """`data.crop` is the panel's side: 512 or 1024."""
    fixed_degradations: Count = 0
    """How many degraded versions a crop has; 0: a new one every time. With a number, and `data.fixed_crops`, latents
    and CLIP's embeddings are computed once and kept."""
    empty_prompts: bool = False
    """Train on photos without a prompt too; false: skip and count them."""
    prompt_tokens: PositiveInt = 256
    """T5 tokens that prompts are filled up to, as ComfyUI does; longer ones are cut, with a warning."""
    guidance: Annotated[float, Field(ge=0)] = 30.0
    """What FLUX is told in training: the value it restores with."""
    time: TimeSettings = TimeSettings()
    encoders: Literal["device", "main memory"] = "main memory"
    """Where the text encoders (10 GB in bf16) are when they are not computing."""
    cache: UserPath | None = None
    """Folder for what frozen networks computed; several runs may share one. null: `cache` in `out`."""
    sampling: SamplingSettings = SamplingSettings()
    export: ExportSettings = ExportSettings()
    optimizer: VICROptimizer = VICROptimizer()

    @model_validator(mode="after")
    def fitting(self) -> VICRConfig:
        """Raises ValueError for settings that exclude each other."""
        if self.data.crop % PANEL_MULTIPLE:
            raise ValueError(f"data.crop is {self.data.crop}; a panel's side must be a multiple of {PANEL_MULTIPLE}")
        if self.bridge.joins != "nothing" and self.models.clip_vision is None:
            raise ValueError("models.clip_vision is needed for the bridge; without one, set bridge.joins to nothing")
        if self.bridge.joins == "nothing" and (self.bridge.file or self.bridge.hidden):
            raise ValueError("bridge.joins is nothing: leave out bridge.file and bridge.hidden")
        if self.bridge.file and self.bridge.hidden:
            raise ValueError("bridge.file says how wide the bridge is: leave out bridge.hidden")
        if self.fixed_degradations and not self.data.fixed_crops:
            raise ValueError("fixed_degradations needs data.fixed_crops: crops that come again")
        return self
