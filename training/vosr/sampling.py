"""Restoring with a network in training: Euler steps from noise, guided as at inference."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ...models.vosr.sampling import euler_times, guide

Velocity = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(x `[B, 2C, H, W]`, t `[B]`, r `[B]`, z) -> `[B, C, H, W]`."""


def restore_latent(
    velocity: Velocity, lq: Tensor, z: Tensor | None, noise: Tensor, steps: int, guidance: float, weak_strength: float
) -> Tensor:
    """Clean latents `[B, C, H, W]` of normalised LQ latents, from noise of the same shape.

    z: vision features `[B, M, E]`, or None. guidance: scale of restoration-oriented guidance, 1 for none.
    """
    x = noise
    times = euler_times(steps).to(x.device)
    blank = None if z is None else torch.zeros_like(z)
    for t, r in pairwise(times):
        here, there = t.expand(len(x)), r.expand(len(x))
        full = velocity(torch.cat([lq, x], dim=1), here, there, z).float()
        weak = None
        if guidance != 1:
            weak = velocity(torch.cat([weak_strength * lq, x], dim=1), here, there, blank).float()
        x = x - (t - r) * guide(full, weak, guidance)
    return x
