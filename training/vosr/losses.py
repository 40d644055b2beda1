"""Training objectives of VOSR (arXiv 2604.03225): flow matching under weak conditions, and one-step distillation.

Every random number is an argument, so that a run can be repeated and a loss checked against fixed draws.
Shapes: latents `[B, C, H, W]`, per-sample draws `[B]`, vision features `[B, M, E]` or None for a network without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..flow import expand, noisy


class VelocityNetwork(Protocol):
    """The network as the objectives call it: x `[B, 2C, H, W]`, t and r `[B]`, features -> `[B, C, H, W]`."""

    def __call__(self, x: Tensor, t: Tensor, r: Tensor | None = None, z: Tensor | None = None) -> Tensor: ...


class Conditions(NamedTuple):
    """What one batch is conditioned on: the full pair, the weak pair and the per-sample mixture of both."""

    full_lq: Tensor
    full_z: Tensor | None
    weak_lq: Tensor
    weak_z: Tensor | None
    lq: Tensor
    z: Tensor | None


@dataclass(frozen=True)
class ConditionScheme:
    """How training disturbs the condition.

    The full LQ latent keeps sigmoid(mean + std n) of its amplitude, n ~ N(0, 1), and gets noise that fills the
    variance up.
    """

    weak_ratio: float = 0.1
    """Part of the samples that see the weak pair (LQ latent scaled down, features zero)."""
    strength_mean: float = 5.0
    strength_std: float = 1.0

    def conditions(
        self,
        lq: Tensor,
        z: Tensor | None,
        weak_strength: Tensor | float,
        strength_normal: Tensor,
        lq_noise: Tensor,
        weak_uniform: Tensor,
    ) -> Conditions:
        """Conditions of a batch.

        weak_strength: the weak branch's factor w. strength_normal, weak_uniform: draws `[B]` from N(0, 1) and
        U(0, 1). lq_noise: standard normal of the shape of lq.
        """
        alpha = expand(torch.sigmoid(self.strength_mean + self.strength_std * strength_normal), lq)
        full_lq = alpha * lq + (1 - alpha**2).sqrt() * lq_noise
        weak_lq = weak_strength * lq
        weak = weak_uniform < self.weak_ratio
        mixed_lq = torch.where(expand(weak, lq), weak_lq, full_lq)
        if z is None:
            return Conditions(full_lq, None, weak_lq, None, mixed_lq, None)
        weak_z = torch.zeros_like(z)
        return Conditions(full_lq, z, weak_lq, weak_z, mixed_lq, torch.where(expand(weak, z), weak_z, z))


def flow_matching_loss(
    model: VelocityNetwork,
    hq: Tensor,
    condition: Conditions,
    t: Tensor,
    eps: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the velocity at time t against eps - hq; weights `[B]` for an uneven mean over samples."""
    velocity = model(torch.cat([condition.lq, noisy(hq, eps, t)], dim=1), t, z=condition.z)
    error = (velocity.float() - (eps - hq)).square()
    return (error if weights is None else error * expand(weights, error)).mean()


def balanced_weights(hq: Tensor, lq: Tensor, t: Tensor, scale: float) -> Tensor:
    """Sample weights `[B]` that keep hard samples from ruling a batch: t^2 s / (s + mse(lq, hq)), lq the condition.

    Ours. t^2 turns a velocity's error into that of the clean latent it implies, and the quotient brings the objective
    nearer to the mean PSNR than to the mean squared error; a weak condition counts little.
    """
    error = (hq - lq).square().flatten(1).mean(dim=1)
    return t**2 * scale / (scale + error)


@dataclass(frozen=True)
class Distillation:
    """One-step distillation of a guided multi-step teacher. Raises ValueError for an unknown method."""

    method: str = "rcgm"
    """`rcgm` (consistency with a short teacher step followed by `n_steps` of the student) or `shortcut` (one long step
    equals two half steps)."""
    guidance: float = 0.5
    """Scale s of the teacher's velocity v_weak + s (v_full - v_weak)."""
    t_start: float = 0.0
    t_end: float = 1.0
    """The guided velocity is the target for t in [t_start, t_end], the teacher's full branch outside it."""
    delta_t: float = 0.01
    """Length of rcgm's short teacher step."""
    n_steps: int = 2
    u_weight: float = 1.0
    """Weight of the second loss term."""

    def __post_init__(self):
        if self.method not in ("rcgm", "shortcut"):
            raise ValueError(f"distillation method is '{self.method}'; use 'rcgm' or 'shortcut'")

    def losses(
        self,
        student: VelocityNetwork,
        teacher: VelocityNetwork,
        hq: Tensor,
        condition: Conditions,
        t: Tensor,
        r: Tensor,
        eps: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(total loss, its instantaneous-velocity term) for steps from t to r, `r <= t` per sample."""
        x = noisy(hq, eps, t)
        target = self.teacher_velocity(teacher, x, t, condition).detach()
        call = Student(student, condition)
        instantaneous = (call(x, t, t) - target).square().mean()
        term = self.rcgm_term if self.method == "rcgm" else self.shortcut_term
        return instantaneous + self.u_weight * term(call, x, t, r, target), instantaneous

    @torch.no_grad()
    def teacher_velocity(self, teacher: VelocityNetwork, x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        """Guided velocity of the teacher: both branches in one batched call."""
        z = None if condition.full_z is None else torch.cat([condition.full_z, condition.weak_z])
        latents = torch.cat([torch.cat([condition.full_lq, x], dim=1), torch.cat([condition.weak_lq, x], dim=1)])
        full, weak = teacher(latents, torch.cat([t, t]), z=z).float().chunk(2)
        inside = (t >= self.t_start) & (t <= self.t_end)
        scale = expand(torch.where(inside, self.guidance, 1.0), x)
        return weak + scale * (full - weak)

    def rcgm_term(self, call: Student, x: Tensor, t: Tensor, r: Tensor, target: Tensor) -> Tensor:
        """Mean velocity over [r, t] regressed to its own value moved by the clamped consistency error."""
        mean_velocity = call(x, t, r)
        with torch.no_grad():
            middle = torch.maximum(t - self.delta_t, r)
            y = x - expand(t - middle, x) * target
            travelled = self.integrate(call, y, middle, r)
            interval = (t - r).clamp(min=1e-6)
            near = t < r + self.delta_t + 1e-6
            k1 = expand(torch.where(near, torch.ones_like(t), interval / self.delta_t), x)
            k2 = expand(torch.where(near, 1 / interval, torch.full_like(t, 1 / self.delta_t)), x)
            correction = (k1 * mean_velocity - k2 * travelled - target).clamp(-1, 1)
            goal = mean_velocity - correction
        return (mean_velocity - goal).square().mean()

    def integrate(self, call: Student, y: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Displacement of the student's n_steps equal Euler steps from start to end."""
        travelled = torch.zeros_like(y)
        for step in range(self.n_steps):
            here = start + (end - start) * (step / self.n_steps)
            there = start + (end - start) * ((step + 1) / self.n_steps)
            moved = expand(here - there, y) * call(y, here, there)
            y = y - moved
            travelled = travelled + moved
        return travelled

    def shortcut_term(self, call: Student, x: Tensor, t: Tensor, r: Tensor, target: Tensor) -> Tensor:
        """One step from t to r against the mean of two half steps."""
        with torch.no_grad():
            middle = (t + r) / 2
            first = call(x, t, middle)
            second = call(x - expand((t - r) / 2, x) * first, middle, r)
            goal = (first + second) / 2
        return (call(x, t, r) - goal).square().mean()


class Student:
    """The student with a batch's mixed condition filled in."""

    def __init__(self, network: VelocityNetwork, condition: Conditions):
        self.network = network
        self.condition = condition

    def __call__(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return self.network(torch.cat([self.condition.lq, x], dim=1), t, r, self.condition.z).float()


def step_times(uniforms: Tensor, shrink: Tensor) -> tuple[Tensor, Tensor]:
    """(t, r) of distillation from draws: t is the larger of two uniforms `[B, 2]`, r = t (1 - g) with g `[B]`."""
    t = uniforms.amax(dim=1)
    return t, t * (1 - shrink)
