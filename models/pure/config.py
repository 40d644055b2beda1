"""What a PURE backbone is, read from its config.json and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..state_dict import MOST_LAYERS
from .vocabulary import VOCABULARY

MOST_WIDE = 2**20
"""Far beyond every decoder's widths and vocabulary."""


@dataclass(frozen=True)
class ChameleonConfig:
    """Sizes of one Chameleon decoder; the defaults are PURE's 7 B model. Raises ValueError for sizes that cannot be."""

    vocab_size: int = VOCABULARY
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    qk_norm_rows: int = 1
    """Rows of the stored QK-norm weights (`model_parallel_size`); row r serves the r-th block of
    num_heads / qk_norm_rows consecutive heads."""
    swin_norm: bool = False
    """Normalise what a residual branch returns instead of what it is given."""
    attention_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        for name in (*sizes, "qk_norm_rows"):
            value = getattr(self, name)
            most = MOST_LAYERS if name == "num_layers" else MOST_WIDE
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} is {value!r:.40}: it must be a whole number from 1 to {most}")
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r:.40}: it must be a number above 0")
        for name, divisor in (("hidden_size", self.num_heads), ("num_heads", self.num_kv_heads)):
            if getattr(self, name) % divisor:
                raise ValueError(f"{name} is {getattr(self, name)}, which {divisor} heads do not divide")
        if self.head_dim % 2:
            raise ValueError(f"a head is {self.head_dim} wide: rotary positions need an even width")
        if self.num_heads % self.qk_norm_rows or self.num_kv_heads % self.qk_norm_rows:
            raise ValueError(
                f"model_parallel_size is {self.qk_norm_rows}: it must divide the {self.num_heads} heads "
                f"and the {self.num_kv_heads} key-value heads"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def has_image_vocabulary(self) -> bool:
        """Whether the vocabulary is PURE's: 65536 Chameleon tokens and 8192 further image codes."""
        return self.vocab_size == VOCABULARY

    def require_image_vocabulary(self) -> None:
        """Raises ValueError unless the vocabulary has all 16384 image codes."""
        if self.has_image_vocabulary:
            return
        looks = " That is Chameleon's and Lumina-mGPT's, with 8192 image codes." if self.vocab_size == 65536 else ""
        raise ValueError(
            f"the model has {self.vocab_size} tokens, PURE has {VOCABULARY}.{looks} Choose the folder of nonwhy/PURE."
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ChameleonConfig:
        """The configuration a config.json states (either reference or transformers naming).

        `mask_image_logits` is ignored: with it no image could be generated. Raises ValueError naming a setting that is
        missing or that this decoder does not have.
        """
        kind = values.get("model_type", "chameleon")
        if kind != "chameleon":
            raise ValueError(f"config.json says model_type '{kind}': PURE's backbone is 'chameleon'")
        required = (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        )  # fmt: skip
        missing = [name for name in required if name not in values]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        rope = values.get("rope_parameters") or {}
        if not isinstance(rope, Mapping):
            raise ValueError(f"config.json has rope_parameters {rope!r:.40}: it must be a table")
        unsupported = {
            "hidden_act": (values.get("hidden_act", "silu"), "silu"),
            "rope_scaling": (values.get("rope_scaling"), None),
            "rope_parameters.rope_type": (rope.get("rope_type", "default"), "default"),
            "tie_word_embeddings": (values.get("tie_word_embeddings", False), False),
        }
        for name, (value, wanted) in unsupported.items():
            if value != wanted:
                raise ValueError(f"config.json has {name} {value!r}: PURE's backbone has {wanted!r}")
        heads = values["num_attention_heads"]
        return cls(
            vocab_size=values["vocab_size"],
            hidden_size=values["hidden_size"],
            intermediate_size=values["intermediate_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=values.get("num_key_value_heads") or heads,
            rms_norm_eps=values.get("rms_norm_eps", 1e-5),
            rope_theta=rope.get("rope_theta", values.get("rope_theta", 10000.0)),
            qk_norm_rows=values.get("model_parallel_size", 1),
            swin_norm=values.get("swin_norm", False),
            attention_bias=values.get("attention_bias", False),
            mlp_bias=values.get("mlp_bias", False),
        )
