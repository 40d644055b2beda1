"""Settings of PURE training (arXiv 2503.11073): the paper's numbers are the defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from ...models.pure.grid import Grid
from ...models.pure.vocabulary import PATCH_PIXELS
from ..data.degradation_config import DegradationSettings, RealWorldSettings
from ..engine.config import Chance, OptimizerSettings, RunConfig, Settings, UserPath

LoRAPart = Literal["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


class ConversationList(Settings):
    """A JSON list of conversations, and how much of it an epoch has."""

    list: UserPath
    """See training/pure/conversations.py for its form. Picture paths in it are relative to its folder."""
    ratio: Annotated[float, Field(gt=0)] = 1.0
    """Times an epoch has each item; of a broken number, other items are drawn in every epoch."""


class PUREDataSettings(Settings):
    conversations: Annotated[tuple[ConversationList, ...], Field(min_length=1)]
    side: PositiveInt = 512
    """Pixels: pictures are cut to about side x side, in multiples of 32, as near to their own shape as that allows."""
    degradation: Annotated[tuple[DegradationSettings, ...], Field(min_length=1)] = (RealWorldSettings(),)
    """What the validation images are degraded by; training pictures are pairs already."""
    tokens: UserPath | None = None
    """Folder of tokenised conversations, made on first use or by scripts/tokenise.py; null: `tokens` in `out`."""

    @field_validator("side")
    @classmethod
    def _fits_the_size_tokens(cls, side: int) -> int:
        if side % PATCH_PIXELS:
            raise ValueError(f"must be a multiple of {PATCH_PIXELS}")
        try:
            Grid(side // PATCH_PIXELS, side // PATCH_PIXELS)
        except ValueError as error:
            raise ValueError("must be at most 512") from error
        return side


class LoRASettings(Settings):
    rank: PositiveInt = 64
    alpha: PositiveInt = 64
    """The update is scaled by alpha / rank."""
    dropout: Chance = 0.0
    """Of what goes into the update."""
    parts: Annotated[tuple[LoRAPart, ...], Field(min_length=1)] = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    """Linear layers of every block that get an update. Query, key and value are one layer here, gate and up another."""
    embeddings: bool = False
    """Train the embedding and the head as well, wholly. Needed where the start has no tokens for codes from 8192 on."""


class PUREConfig(RunConfig):
    """A run of PURE training. The defaults are the paper's for full tuning on 32 devices."""

    data: PUREDataSettings
    start: UserPath
    """Folder with config.json, tokenizer.json and safetensors: PURE, or Lumina-mGPT, whose vocabulary is enlarged."""
    vqgan: UserPath
    """LlamaGen's vq_ds8_c2i.pt, or the same as safetensors."""
    lora: LoRASettings | None = None
    """null: every weight is trained."""
    zero_image_head: bool = False
    """Set the head's rows of all image tokens to zero first, so that every code starts equally likely."""
    dropout: Chance = 0.05
    """Of what each residual branch adds."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean of squared log partition functions; Lumina-mGPT has 1e-5."""
    max_length: Annotated[int, Field(ge=2)] = 11776
    """Tokens at which a conversation is cut."""
    export_precision: Literal["bf16", "fp32"] = "bf16"
    """Of the files written for the nodes."""

    batch: PositiveInt = 4
    gradient_checkpointing: bool = True
    gradient_clip: Annotated[float, Field(gt=0)] | None = 4.0
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=4e-4, betas=(0.9, 0.95), weight_decay=0.1)

    @model_validator(mode="before")
    @classmethod
    def _optimizer_defaults(cls, values: object) -> object:
        """An `optimizer` part that names some settings keeps the paper's for the others."""
        if isinstance(values, dict) and isinstance(values.get("optimizer"), dict):
            paper = {"learning_rate": 4e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
            values = {**values, "optimizer": {**paper, **values["optimizer"]}}
        return values
