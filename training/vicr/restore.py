"""Sampling of a diptych while training, for sample grids: FLUX Fill's own schedule by diffusers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...models.vicr.sigmas import BASE_SHIFT, BASE_TOKENS, MAX_SHIFT, MAX_TOKENS, dynamic_shift

Velocity = Callable[[Tensor, Tensor], Tensor]
"""x `[B, C, h, 2 w]` and time `[B]` -> the velocity there."""


def schedule(steps: int, tokens: int) -> Any:
    """diffusers' scheduler set to `steps` Euler steps of a canvas of that many image tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    # diffusers takes its classes' common methods from bases it gives no types for.
    scheduler: Any = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=BASE_SHIFT,
        max_shift=MAX_SHIFT,
        base_image_seq_len=BASE_TOKENS,
        max_image_seq_len=MAX_TOKENS,
    )
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=dynamic_shift(tokens))
    return scheduler


@torch.no_grad()
def sample(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    """Diptych latents `[B, C, h, 2 w]` from noise of that shape."""
    height, width = noise.shape[-2:]
    scheduler = schedule(steps, height * width // 4)
    x = noise
    for now in scheduler.timesteps:
        time = (now / scheduler.config.num_train_timesteps).to(x).expand(len(x))
        x = scheduler.step(velocity(x, time), now, x, return_dict=False)[0]
    return x
