"""VOSR sampling (arXiv 2604.03225): restoration-oriented guidance, Euler steps, and both over tiles.

These loops are the method in plain torch. In ComfyUI the same steps are taken by the host's samplers, with
`guidance_branches` and `guide` inside a guider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ..tiles.grid import Box, TileGrid
from ..tiles.merge import merge_tiles
from .dit import VOSRDiT

DEFAULT_WEAK_STRENGTH = 0.15
"""Midpoint of the trained range 0.05..0.25, the strength the reference samples with."""

DEFAULT_GUIDANCE_SCALE = 0.5
MULTI_STEP = 25


def weak_strength_from_args(args: dict) -> float:
    """The weak condition's strength w that a checkpoint's args.json implies: the midpoint of its trained range."""
    trained = args.get("weak_cond_strength_aelq_list")
    return DEFAULT_WEAK_STRENGTH if not trained else sum(trained) / len(trained)


def euler_times(steps: int, schedule: Literal["linear", "cosine"] = "linear") -> Tensor:
    """Times of `steps` Euler steps, `[steps + 1]` from 1 to 0."""
    if schedule == "cosine":
        return torch.cos(torch.linspace(0, torch.pi / 2, steps + 1))
    return torch.linspace(1, 0, steps + 1)


@dataclass(frozen=True)
class Guidance:
    """Restoration-oriented guidance: v = v_weak + scale * (v_full - v_weak).

    scale: 1 is the full condition alone, 0 the weak one alone; above 1 extrapolates towards the input, below 0
    away from it. start, end: the steps guided are those whose time lies in [start, end]; others use the full
    condition alone.
    """

    scale: float = DEFAULT_GUIDANCE_SCALE
    start: float = 0.0
    end: float = 1.0

    def scale_at(self, t: float) -> float:
        # Rounded, because a time of 0.8 is 0.80000001 in float32, and a bound of 0.8 includes it.
        return self.scale if self.start <= round(t, 6) <= self.end else 1.0


def guidance_branches(scale: float) -> tuple[bool, bool]:
    """Which of (full, weak) predictions a scale needs."""
    return scale != 0.0, scale != 1.0


def guide(full: Tensor | None, weak: Tensor | None, scale: float) -> Tensor:
    """v_weak + scale * (v_full - v_weak), of velocities or equally of clean predictions at one time."""
    if weak is None:
        assert full is not None
        return full
    return weak if full is None else weak + scale * (full - weak)


@dataclass(frozen=True)
class Condition:
    """What one image, or one tile, is restored from.

    latent: LQ latent `[B, C, H, W]`, normalised. features: vision features `[B, M, E]`, one such tensor a tile
    when the run is tiled, or None for a network without cross-attention. weak_strength: w of the weak branch,
    which sees w * latent and all-zero features.
    """

    latent: Tensor
    features: Tensor | Sequence[Tensor] | None
    weak_strength: float = DEFAULT_WEAK_STRENGTH

    def tile(self, box: Box, index: int) -> Condition:
        features = None if self.features is None else self.features[index]
        return Condition(box.crop(self.latent), features, self.weak_strength)


@dataclass
class Velocity:
    """The guided velocity of a network under a condition, one batched forward for both branches."""

    network: VOSRDiT
    guidance: Guidance = field(default_factory=Guidance)

    def __call__(self, x: Tensor, t: float, r: float | None, condition: Condition) -> Tensor:
        scale = self.guidance.scale_at(t)
        need_full, need_weak = guidance_branches(scale)
        strengths = [1.0] * need_full + [condition.weak_strength] * need_weak
        latents = torch.cat([strength * condition.latent for strength in strengths])
        z = None
        if condition.features is not None:
            assert isinstance(condition.features, Tensor)
            zeros = torch.zeros_like(condition.features)
            z = torch.cat([condition.features] * need_full + [zeros] * need_weak)
        times = x.new_full((latents.shape[0],), t)
        ends = None if r is None else x.new_full((latents.shape[0],), r)
        noisy = torch.cat([x] * len(strengths))
        parts = list(self.network(torch.cat([latents, noisy], dim=1), times, ends, z).chunk(len(strengths)))
        full = parts.pop(0) if need_full else None
        return guide(full, parts[0] if need_weak else None, scale)

    def tiled(self, x: Tensor, t: float, r: float | None, condition: Condition, grid: TileGrid) -> Tensor:
        def predict(first: int, boxes: Sequence[Box]) -> list[Tensor]:
            return [self(box.crop(x), t, r, condition.tile(box, first + i)) for i, box in enumerate(boxes)]

        return merge_tiles(grid, x, predict)


@torch.no_grad()
def sample(
    velocity: Velocity, noise: Tensor, condition: Condition, times: Tensor, grid: TileGrid | None = None
) -> Tensor:
    """Euler integration from noise `[B, C, H, W]` at times[0] = 1 to the clean latent at times[-1] = 0.

    Works for multi-step models and, with `Guidance(scale=1)`, for one-step students at any number of steps.
    With a grid, the velocities of all tiles are merged at every step.
    """
    x = noise
    steps = times.tolist()
    for start, end in pairwise(steps):
        if grid is None:
            v = velocity(x, start, end, condition)
        else:
            v = velocity.tiled(x, start, end, condition, grid)
        x = x - (start - end) * v
    return x
