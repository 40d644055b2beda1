"""Sampling of a diptych while training, for sample grids: FLUX Fill's own schedule by diffusers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...models.vicr.sigmas import BASE_SHIFT, BASE_TOKENS, MAX_SHIFT, MAX_TOKENS, dynamic_shift
from ..engine.method import Batch

if TYPE_CHECKING:
    from .network import DiptychFill


def schedule(steps: int, tokens: int):
    """diffusers' scheduler set to `steps` Euler steps of a canvas of that many image tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=BASE_SHIFT,
        max_shift=MAX_SHIFT,
        base_image_seq_len=BASE_TOKENS,
        max_image_seq_len=MAX_TOKENS,
    )
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=dynamic_shift(tokens))
    return scheduler


@torch.no_grad()
def sample(network: DiptychFill, conditions: Batch, noise: Tensor, steps: int) -> Tensor:
    """Diptych latents `[B, C, h, 2 w]` from noise of that shape, under the conditions of a prepared batch."""
    height, width = noise.shape[-2:]
    scheduler = schedule(steps, height * width // 4)
    x = noise
    for time in scheduler.timesteps:
        level = (time / scheduler.config.num_train_timesteps).to(x).expand(len(x))
        velocity = network.velocity(
            x, conditions["masked"], level, conditions["text"], conditions["pooled"], conditions["embeds"]
        )
        x = scheduler.step(velocity, time, x, return_dict=False)[0]
    return x
