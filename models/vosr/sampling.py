"""VOSR sampling (arXiv 2604.03225): the times of Euler steps and restoration-oriented guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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
class RestorationGuidance:
    """Restoration-oriented guidance: v = v_weak + scale * (v_full - v_weak)."""

    scale: float = DEFAULT_GUIDANCE_SCALE
    """1 is the full condition alone, 0 the weak one alone; above 1 extrapolates towards the input, below 0 away."""
    start: float = 0.0
    """The steps guided are those whose time lies in [start, end]; others use the full condition alone."""
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
