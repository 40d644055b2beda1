"""Settings of a DreamSR run: the MM-ControlNet alone (stage 1), or in alternation with the acceleration LoRA."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...models.dreamsr.schedule import REMOVAL_TIME, TEXTURE_START, TEXTURE_STEPS
from ..data.config import DataSettings
from ..engine.config import Chance, Count, OptimizerSettings, RunConfig, Settings, UserPath
from ..flux.config import ModelFiles

Factor = Annotated[float, Field(ge=0)]
Time = Annotated[float, Field(gt=0, le=1)]


class ControlSettings(Settings):
    """The MM-ControlNet."""

    start: UserPath | None = None
    """A file of an earlier run; null: blocks copied from FLUX, with outputs of zero. A file decides what follows."""
    layers: PositiveInt = 9
    """Two-stream blocks: half of FLUX's 19."""
    dit_blocks: tuple[Count, ...] | None = None
    """FLUX's blocks that are copied and acted on; null: spread evenly (0, 2, ..., 16)."""
    text_residual: bool = True
    """Whether the text branch adds to FLUX's text stream, or replaces it as eq. 2 is printed."""

    @model_validator(mode="after")
    def one_block_each(self) -> ControlSettings:
        if self.dit_blocks is not None and len(set(self.dit_blocks)) != len(self.dit_blocks):
            raise ValueError(f"control.dit_blocks names a block twice: {list(self.dit_blocks)}")
        if self.dit_blocks is not None and len(self.dit_blocks) != self.layers:
            raise ValueError(f"control.dit_blocks names {len(self.dit_blocks)} blocks, control.layers is {self.layers}")
        return self


class ErasedSettings(Settings):
    """Pairs of clean and detail-erased images, for the texture stage: what scripts/make_pairs.py wrote."""

    folder: UserPath
    share: Chance = 0.5
    """Of the samples; the others are photos, degraded, for the removal stage. The paper states none: our choice."""


class LossSettings(Settings):
    """Weights of eq. 4-7; the velocity's and the latent's are 1."""

    image_below: Chance = 0.2
    """Stage 1 decodes its estimate of the clean latent where t is below, and judges the image too; 0: never."""
    pixel: Factor = 1.0
    lpips: Factor = 2.0
    adversarial: Factor = 0.5
    """Of the LoRA alone."""
    logit_normal: tuple[float, float] | None = None
    """Mean and standard deviation of logit(t); null: uniform t."""


class LPIPSSettings(Settings):
    """Files of LPIPS 0.1 on VGG-16. Nothing is downloaded."""

    backbone: UserPath
    """torchvision's vgg16-397923af.pth."""
    head: UserPath
    """LPIPS_v0.1_vgg-a78928a0.pth, pyiqa's copy of the published linear layers."""


class LoRASettings(Settings):
    """The restoration acceleration LoRA: its presence makes a run alternate."""

    rank: PositiveInt = 256
    alpha: PositiveFloat = 256.0
    """Its updates count alpha / rank."""
    targets: tuple[str, ...] = ()
    """Ends of the layers' names in FLUX's blocks, as in attn.to_q; empty: every product of attention and MLPs."""
    start: UserPath | None = None
    """A file of an earlier run; null: untrained."""
    removal_time: Time = REMOVAL_TIME
    """t_s of eq. 7, which the networks are told."""
    control_steps: PositiveInt = 1
    """Steps of the control ..."""
    lora_steps: PositiveInt = 1
    """... and then of the LoRA with its discriminator, in turn."""
    rate: PositiveFloat = 1.0
    """Factor of the learning rate."""


class DiscriminatorSettings(Settings):
    """The patch discriminator of eq. 7's adversarial term. The paper describes none: our choice."""

    width: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """Channels of its first layer."""
    rate: PositiveFloat = 1.0
    """Factor of the learning rate."""


class DreamSROptimizer(OptimizerSettings):
    learning_rate: Annotated[float, Field(gt=0)] = 5e-6


class RestoreSettings(Settings):
    """How validation images are restored."""

    texture_start: Time = TEXTURE_START
    texture_steps: PositiveInt = TEXTURE_STEPS


class ExportSettings(Settings):
    """The files for the nodes, below `out`: controlnet/NAME_mm_controlnet.safetensors and
    loras/NAME_acceleration.safetensors."""

    name: str = "dreamsr"
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"


class DreamSRConfig(RunConfig):
    """A DreamSR run. Defaults are the paper's; batch x accumulate x devices is to be 64."""

    data: DataSettings
    models: ModelFiles
    base: Literal["full", "int8", "nf4"] = "full"
    """How FLUX's frozen weights are kept: in the run's precision, or quantised by bitsandbytes (a GPU)."""
    guidance: Factor = 3.5
    """The distilled scale that FLUX and the control are told in training: that of the texture stage."""
    prompt_tokens: PositiveInt = 256
    """T5 tokens that prompts are filled up to, as ComfyUI does; longer ones are cut, with a warning."""
    encoders: Literal["device", "main memory"] = "main memory"
    """Where the text encoders (10 GB in bf16) are when they are not computing."""
    control: ControlSettings = ControlSettings()
    erased: ErasedSettings | None = None
    """null: photos and their degradation alone."""
    patch_prompts: bool = True
    """Whether crops have prompts of their own, in the photos' .crops.json; false: the photo's for both networks."""
    losses: LossSettings = LossSettings()
    lpips: LPIPSSettings | None = None
    """Needed unless losses.lpips is 0."""
    lora: LoRASettings | None = None
    """null: the control alone (stage 1)."""
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    restore: RestoreSettings = RestoreSettings()
    export: ExportSettings = ExportSettings()
    optimizer: DreamSROptimizer = DreamSROptimizer()
    cache: UserPath | None = None
    """Folder in which embedded prompts, and latents of crops that come again, are kept; null: `out`/cache."""

    @model_validator(mode="after")
    def consistent(self) -> DreamSRConfig:
        judged = self.losses.image_below > 0 or self.lora is not None
        if judged and self.losses.lpips > 0 and self.lpips is None:
            raise ValueError("lpips: name the files of LPIPS, or set losses.lpips to 0")
        return self
