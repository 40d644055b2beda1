"""How PURE's answers are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from .cache import bytes_per_token
from .config import ChameleonConfig
from .grid import Grid
from .logits import TokenSampling

AnswerParts = Literal["full", "perception", "understanding", "none"]
"""Which text the image is conditioned on: all, the degradation sentence, the caption, or none."""
ANSWER_PARTS: tuple[AnswerParts, ...] = get_args(AnswerParts)

Decoding = Literal["sequential", "jacobi"]
DECODING: tuple[Decoding, ...] = get_args(Decoding)


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are written; the defaults are the paper's. Raises ValueError for values that cannot be."""

    sampling: TokenSampling = field(default_factory=TokenSampling)
    """How image tokens are drawn."""
    guidance_scale: float = 0.8
    """Of classifier-free guidance on image tokens; 1 switches it off and halves the cache."""
    text_top_k: int = 1
    """Words a word is drawn from; 1 is greedy."""
    max_text_tokens: int = 512
    """Where a text counts as endless."""
    size: tuple[int, int] = (16, 16)
    """(height, width) of the image in patches of 32 pixels. The model is not asked: it could state any."""
    parts: AnswerParts = "full"
    """Which text the image is conditioned on."""
    decoding: Decoding = "sequential"
    """One token a forward, or speculative windows whose result has the same distribution."""
    window: int = 16
    """Tokens of a Jacobi window."""
    cuda_graphs: bool = False
    """Replay sequential steps as CUDA graphs; only for weights that stay on the device."""

    def __post_init__(self) -> None:
        if self.parts not in ANSWER_PARTS:
            raise ValueError(f"unknown text '{self.parts}': choose one of {', '.join(ANSWER_PARTS)}")
        if self.decoding not in DECODING:
            raise ValueError(f"unknown decoding '{self.decoding}': choose one of {', '.join(DECODING)}")
        for name, lowest in (("text_top_k", 1), ("max_text_tokens", 1), ("window", 2)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {lowest}")
        Grid(*self.size)

    @property
    def image_length(self) -> int:
        """Positions an image takes in a cache."""
        return Grid(*self.size).length + 3 + (self.window if self.decoding == "jacobi" else 0)

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0


def cache_bytes(
    config: ChameleonConfig, options: GenerationOptions, batch: int, prompt_tokens: int, dtype: torch.dtype
) -> int:
    """Memory of the key-value caches of a run: prompt, text and image, and the image again when guided."""
    tokens = prompt_tokens + options.max_text_tokens + options.image_length * (2 if options.guided else 1)
    return batch * tokens * bytes_per_token(config, dtype)
