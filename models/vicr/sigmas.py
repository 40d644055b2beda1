"""The noise levels FLUX Fill was built for: flow matching with a shift that grows with the number of tokens.

The same numbers as diffusers' FluxFillPipeline computes with FlowMatchEulerDiscreteScheduler. ComfyUI's `simple`
scheduler with ModelSamplingFlux picks them from a table of 10000 levels and is off by up to 3e-4, which moves a
30-step latent visibly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BASE_SHIFT, MAX_SHIFT = 0.5, 1.15
BASE_TOKENS, MAX_TOKENS = 256, 4096


def dynamic_shift(tokens: int, base_shift: float = BASE_SHIFT, max_shift: float = MAX_SHIFT) -> float:
    """mu: base_shift at 256 image tokens, max_shift at 4096, linear between and beyond.

    tokens: latent cells / 4, for the whole canvas.
    """
    return base_shift + (max_shift - base_shift) * (tokens - BASE_TOKENS) / (MAX_TOKENS - BASE_TOKENS)


def flow_match_sigmas(
    tokens: int,
    steps: int,
    base_shift: float = BASE_SHIFT,
    max_shift: float = MAX_SHIFT,
    denoise: float = 1.0,
) -> Tensor:
    """Noise levels `[steps + 1]` in float32, from 1 (noise) to 0: e^mu / (e^mu + 1 / sigma - 1).

    denoise: below 1, the last `steps` of int(steps / denoise) steps, as ComfyUI's schedulers count; 0 gives none.
    Raises ValueError for no tokens, no steps, or a denoise outside 0..1.
    """
    if tokens < 1 or steps < 1 or not 0 <= denoise <= 1:
        raise ValueError(f"no schedule for {tokens} tokens, {steps} steps and denoise {denoise}")
    if denoise == 0:
        return torch.empty(0)
    total = int(steps / denoise)
    linear = torch.linspace(1, 1 / total, total, dtype=torch.float64)[total - steps :]
    factor = math.exp(dynamic_shift(tokens, base_shift, max_shift))
    shifted = factor / (factor + 1 / linear - 1)
    return torch.cat([shifted, shifted.new_zeros(1)]).float()
