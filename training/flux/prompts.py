"""Prompts encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data.cache import FeatureCache
from .encoders import TextEncoders
from .files import fingerprint


class Prompts:
    """Prompts as FLUX reads them, kept on the disk by their words."""

    def __init__(self, encoders: TextEncoders, folder: Path):
        self.encoders = encoders
        settings = {
            "files": [fingerprint(path) for path in encoders.paths],
            "tokens": encoders.tokens,
            "dtype": str(encoders.dtype),
        }
        self.cache = FeatureCache(folder / "prompts", settings)

    def __call__(self, prompts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """`text` `[B, N, E]` and `pooled` `[B, 768]`."""

        def compute(places: list[int]) -> dict[str, Tensor]:
            text, pooled = self.encoders.encode([prompts[place] for place in places])
            return {"text": text, "pooled": pooled}

        return {name: value.to(device) for name, value in self.cache.fetch(prompts, compute).items()}
