"""VOSR's losses as modules: what is wrapped for several devices and called once for each micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...models.vosr.dit import VOSRDiT
from ..engine.draws import Draws
from .config import ConditionSettings, TimeSettings
from .losses import Conditions, ConditionScheme, Distillation, balanced_weights, flow_matching_loss, step_times

VELOCITY = "velocity"
"""Turn of a call that wants the network's velocity, for validation."""


def draw_conditions(
    settings: ConditionSettings, strengths: tuple[float, float], batch: Mapping[str, Any], draws: Draws
) -> Conditions:
    """The conditions of a prepared batch; strengths: the range of the weak pair's factor."""
    scheme = ConditionScheme(settings.weak_chance, settings.strength_mean, settings.strength_std)
    low, high = strengths
    weak_strength = low + (high - low) * draws.uniform(1)
    lq, count = batch["lq"], len(batch["lq"])
    return scheme.conditions(
        lq, batch.get("z"), weak_strength, draws.normal(count), draws.normal(*lq.shape), draws.uniform(count)
    )


class VOSRNetwork(nn.Module):
    """The trained network `dit` and an objective.

    Batches hold latents `hq` and `lq` `[B, C, H, W]` and, for networks that read them, features `z` `[B, M, E]`.
    """

    def __init__(self, dit: VOSRDiT, condition: ConditionSettings):
        super().__init__()
        self.dit = dit
        self.condition = condition

    def forward(self, turn: str, batch: Mapping[str, Any], draws: Draws) -> dict[str, Tensor]:
        """Losses of a batch; for the turn VELOCITY that of `x`, `t`, `r`, `z`: parameters that are spread over devices
        come together for this call alone."""
        if turn == VELOCITY:
            return {"velocity": self.dit(batch["x"], batch["t"], batch["r"], batch["z"])}
        return self.losses(batch, draws)

    def losses(self, batch: Mapping[str, Any], draws: Draws) -> dict[str, Tensor]:
        raise NotImplementedError

    def compile(self, *args: Any, **options: Any) -> None:
        """The networks alone: around them are draws, which no compiler follows."""
        for module in self.children():
            module.compile(*args, **options)


class FlowMatching(VOSRNetwork):
    """The multi-step objective."""

    def __init__(self, dit: VOSRDiT, condition: ConditionSettings, times: TimeSettings, balance: float | None):
        super().__init__(dit, condition)
        self.times, self.balance = times, balance

    def losses(self, batch: Mapping[str, Any], draws: Draws) -> dict[str, Tensor]:
        condition = draw_conditions(self.condition, self.condition.weak_strengths, batch, draws)
        hq = batch["hq"]
        eps, t = draws.normal(*hq.shape), self.draw_times(draws, len(hq))
        weights = None if self.balance is None else balanced_weights(hq, condition.lq, t, self.balance)
        return {"loss": flow_matching_loss(self.dit, hq, condition, t, eps, weights)}

    def draw_times(self, draws: Draws, count: int) -> Tensor:
        """`[B]` in [0, 1]."""
        if self.times.logit_normal is None:
            t = draws.uniform(count)
        else:
            mean, std = self.times.logit_normal
            t = torch.sigmoid(mean + std * draws.normal(count))
        return torch.where(draws.uniform(count) < self.times.noise_only_chance, torch.ones_like(t), t)


class OneStepDistillation(VOSRNetwork):
    """The objective of a one-step student `dit` of a frozen `teacher`."""

    def __init__(
        self,
        dit: VOSRDiT,
        teacher: VOSRDiT,
        condition: ConditionSettings,
        weak_strength: float,
        distillation: Distillation,
    ):
        super().__init__(dit, condition)
        self.teacher = teacher.eval().requires_grad_(False)
        self.weak_strength, self.distillation = weak_strength, distillation

    def losses(self, batch: Mapping[str, Any], draws: Draws) -> dict[str, Tensor]:
        condition = draw_conditions(self.condition, (self.weak_strength, self.weak_strength), batch, draws)
        hq = batch["hq"]
        eps = draws.normal(*hq.shape)
        # g of the paper's Beta(1, 1) is uniform.
        t, r = step_times(draws.uniform(len(hq), 2), draws.uniform(len(hq)))
        loss, velocity = self.distillation.losses(self.dit, self.teacher, hq, condition, t, r, eps)
        return {"loss": loss, "velocity": velocity.detach()}
