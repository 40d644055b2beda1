"""What the YAML of a VOSR run holds. Defaults are those of the paper (arXiv 2604.03225) and its code."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..data.config import AugmentSettings, DataSettings
from ..engine.config import Chance, OptimizerSettings, RunConfig, Settings, UserPath
from .presets import PRESETS

Fraction = Annotated[float, Field(ge=0, le=1)]


class ModelSettings(Settings):
    """The architecture: a preset, or the args.json of a trained model, with single settings changed.

    Names are those of the released args.json.
    """

    preset: Literal["nano", "0.5B", "1.4B"] = "0.5B"
    args_file: UserPath | None = None
    """An args.json to take in place of the preset."""
    resolution: PositiveInt | None = None
    """Side in pixels that positions are counted for; other sizes stretch them."""
    dim: PositiveInt | None = None
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    mlp_ratio: PositiveFloat | None = None
    patch_size: PositiveInt | None = None
    enc_dim: PositiveInt | None = None
    """Width of the vision features."""
    encdim_ratio: PositiveInt | None = None
    ae_downscale: PositiveInt | None = None
    """Pixels folded into one latent cell's side, of models without a VAE."""
    ae_scale: PositiveFloat | None = None
    """What those pixels are multiplied by."""

    def args(self) -> dict[str, Any]:
        """The args.json. Raises ValueError when a file is no table, or a setting does not belong to the model."""
        if self.args_file is None:
            args = dict(PRESETS[self.preset])
        else:
            args = json.loads(self.args_file.read_text(encoding="utf-8"))
            if not isinstance(args, dict):
                raise ValueError(f"model.args_file: {self.args_file} holds a {type(args).__name__}, no table")
        changed = self.model_dump(exclude={"preset", "args_file"}, exclude_none=True)
        foreign = [key for key in changed if key not in args]
        if foreign:
            raise ValueError(f"model.{foreign[0]}: a model with ae_type '{args['ae_type']}' has no such setting")
        return {**args, **changed}


class ConditionSettings(Settings):
    """How training disturbs the condition."""

    weak_chance: Chance = 0.1
    """Part of the samples that see the weak pair: the LQ latent scaled down, features zero."""
    weak_strengths: tuple[Fraction, Fraction] = (0.05, 0.25)
    """Range that the weak pair's factor is drawn from, once a micro-batch. Distillation has one of its own."""
    strength_mean: float = 5.0
    strength_std: Annotated[float, Field(ge=0)] = 1.0
    """The full LQ latent keeps sigmoid(N(mean, std)) of its amplitude and gets noise that fills the variance up."""


class TimeSettings(Settings):
    """Which times flow matching is trained at."""

    logit_normal: tuple[float, PositiveFloat] | None = None
    """Mean and standard deviation of logit(t); null: t is uniform."""
    noise_only_chance: Chance = 0.0
    """Part of the samples taken at t = 1, where one Euler step gives the posterior mean (ours; the paper: 0)."""


class DistillationSettings(Settings):
    """A one-step student of a guided multi-step teacher."""

    teacher: UserPath
    """Folder with args.json and weights, or a file that carries its args."""
    method: Literal["rcgm", "shortcut"] = "rcgm"
    guidance: float = 0.5
    """Scale of the teacher's velocity v_weak + scale (v_full - v_weak)."""
    weak_strength: Fraction = 0.1
    """The weak pair's factor, here fixed."""
    delta_t: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Length of rcgm's short teacher step."""
    n_steps: PositiveInt = 2
    """Steps of the student after it."""
    u_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the consistency term beside the instantaneous velocity's."""


class VOSROptimizer(OptimizerSettings):
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    betas: tuple[float, float] = (0.9, 0.95)
    edge_rate: Annotated[float, Field(ge=0)] = 1.0
    """Factor of the learning rate for the embedding and the final layer (ours)."""


class SamplingSettings(Settings):
    """How validation restores."""

    steps: PositiveInt | None = None
    """Euler steps; null: 25, or 1 for a student and for a model that is trained at t = 1 alone."""
    guidance: float = 0.5
    """Scale of restoration-oriented guidance; 1: none. Such models run without."""


class CutSettings(Settings):
    """Smaller squares cut from each degraded crop of `data`, because degrading costs more than cutting."""

    side: PositiveInt | None = None
    """Pixels; null: the crops as they are."""
    count: PositiveInt = 1
    """From each; a micro-batch has this many times `batch` samples."""


class ExportSettings(Settings):
    """The single file written beside the folder in the released form."""

    file: str | None = "vosr.safetensors"
    """Its name; null: the folder alone."""
    dtype: Literal["fp16", "fp32"] = "fp16"
    """Of that file; a tensor whose values fp16 cannot hold stays in fp32."""


class VOSRRunConfig(RunConfig):
    """A run of flow matching or distillation."""

    mode: Literal["flow", "distill"] = "flow"
    model: ModelSettings = ModelSettings()
    vae: UserPath | None = None
    """The SD 2.1 VAE (0.5B) or the Qwen-Image VAE (1.4B): a file or a diffusers folder, as the nodes take it."""
    vision: UserPath | None = None
    """DINOv2 B (0.5B) or L (1.4B): the torch hub file or that of transformers."""
    cache: UserPath | None = None
    """Folder that keeps what the VAE makes of clean crops, where these come again: with `data.fixed_crops` and without
    `data.augment`. Degraded pictures are new at every step and are always encoded."""
    weights: UserPath | None = None
    """Folder or file to start from."""
    start: Literal["reference", "condition"] = "reference"
    """Of a new network: the paper's initialisation, or one that is the best linear estimator already (ours)."""
    data: DataSettings
    cut: CutSettings = CutSettings()
    condition: ConditionSettings = ConditionSettings()
    times: TimeSettings = TimeSettings()
    balance: PositiveFloat | None = None
    """Weight the samples of flow matching by s / (s + mse(lq, hq)) with this s (ours); null: alike."""
    distillation: DistillationSettings | None = None
    sampling: SamplingSettings = SamplingSettings()
    export: ExportSettings = ExportSettings()
    ema: Annotated[float, Field(ge=0, lt=1)] | None = 0.9999
    optimizer: VOSROptimizer = VOSROptimizer()

    @property
    def side(self) -> int:
        """Of what the network sees, in pixels."""
        return self.cut.side or self.data.crop

    @property
    def posterior_mean(self) -> bool:
        """Whether the model is trained at t = 1 alone, and gives the posterior mean in one step."""
        return self.mode == "flow" and self.times.noise_only_chance == 1

    @model_validator(mode="after")
    def one_mode(self) -> VOSRRunConfig:
        """Raises ValueError for settings that the mode would not read."""
        if self.mode == "flow" and self.distillation is not None:
            raise ValueError("mode is flow, which has no teacher: leave out distillation, or set mode to distill")
        if self.mode == "distill":
            if self.distillation is None:
                raise ValueError("mode is distill: set distillation.teacher")
            for name in ("weights", "balance"):
                if getattr(self, name) is not None:
                    raise ValueError(f"mode is distill, which does not read {name}: leave it out")
            if self.start != "reference" or self.times != TimeSettings():
                raise ValueError("mode is distill, which does not read start and times: leave them out")
        if self.weights is not None and self.start != "reference":
            raise ValueError("start is of a new network: leave it out, or leave out weights")
        if self.cache is not None and (not self.data.fixed_crops or self.data.augment != AugmentSettings()):
            raise ValueError("cache is for crops that come again: set data.fixed_crops, and leave out data.augment")
        if self.cache is not None and self.cut.side is not None:
            raise ValueError("cache is for whole crops: leave out cut")
        if self.cut.side is None and self.cut.count != 1:
            raise ValueError("cut.count is of smaller squares: set cut.side")
        if self.cut.side is not None and self.cut.side > self.data.crop:
            raise ValueError(f"cut.side is {self.cut.side}, larger than data.crop of {self.data.crop}")
        low, high = self.condition.weak_strengths
        if low > high:
            raise ValueError(f"condition.weak_strengths is {low} to {high}: the smaller one comes first")
        return self
