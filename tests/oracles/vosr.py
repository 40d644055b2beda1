"""VOSR's sampling (arXiv 2604.03225) as plain loops, whole and tiled: what the host's samplers are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from realisr.models.tiles.grid import Box, TileGrid
from realisr.models.tiles.merge import merge_tiles
from realisr.models.vosr.dit import VOSRDiT
from realisr.models.vosr.sampling import DEFAULT_WEAK_STRENGTH, RestorationGuidance, guidance_branches, guide


@dataclass(frozen=True)
class Condition:
    """What one image, or one tile, is restored from."""

    latent: Tensor
    """LQ latent `[B, C, H, W]`, normalised."""
    features: Tensor | Sequence[Tensor] | None
    """Vision features `[B, M, E]`, one such tensor a tile of a tiled run, or None without cross-attention."""
    weak_strength: float = DEFAULT_WEAK_STRENGTH
    """w of the weak branch, which sees w * latent and all-zero features."""

    def tile(self, box: Box, index: int) -> Condition:
        features = None if self.features is None else self.features[index]
        return Condition(box.crop(self.latent), features, self.weak_strength)


@dataclass
class Velocity:
    """The guided velocity of a network under a condition, one batched forward for both branches."""

    network: VOSRDiT
    guidance: RestorationGuidance = field(default_factory=RestorationGuidance)

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

    Works for multi-step models and, with `RestorationGuidance(scale=1)`, for one-step students at any number of steps.
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
