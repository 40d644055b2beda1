"""Optimizers and learning rates of a run."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .config import OptimizerSettings, ScheduleSettings

STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "muon": 8, "prodigy": 16}
"""Bytes of state per trained parameter, for an estimate; Muon keeps half of AdamW's for the matrices."""


class TurnOptimizer:
    """What moves a turn's parameters: one optimizer, or Muon beside AdamW."""

    def __init__(self, settings: OptimizerSettings, schedule: ScheduleSettings, groups: Sequence[Mapping[str, Any]]):
        self.settings, self.schedule = settings, schedule
        self.parameters: list[nn.Parameter] = [value for group in groups for _, value in group["params"]]
        if not self.parameters:
            raise ValueError("there is nothing to train: no parameter asks for a gradient")
        self.optimizers = make_optimizers(settings, groups)

    def step(self, step: int, steps: int) -> float:
        """Move the parameters with the rate of step 0, 1, ... of `steps`, forget the gradients, return the rate."""
        rate = self.settings.learning_rate * rate_factor(self.schedule, step, steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            optimizer.step()
        self.forget()
        return rate

    def forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def rate_factor(schedule: ScheduleSettings, step: int, steps: int) -> float:
    """The part of the learning rate that step 0, 1, ... of `steps` takes: warm-up, constant, cosine fall."""
    factor = 1.0
    if step < schedule.warmup:
        factor *= (step + 1) / schedule.warmup
    left = steps - step
    if left < schedule.cooldown:
        factor *= 0.5 - 0.5 * math.cos(math.pi * left / schedule.cooldown)
    return factor


def make_optimizers(settings: OptimizerSettings, groups: Sequence[Mapping[str, Any]]) -> list[Optimizer]:
    """Optimizers for groups of (name, parameter) pairs with a `rate`.

    Raises ModuleNotFoundError with the install command where one needs a package that is not there, and ValueError for
    Muon where torch is older than 2.9.
    """
    if settings.name == "muon":
        return make_muon(settings, groups)
    plain = [{**group, "params": [value for _, value in group["params"]]} for group in groups if group["params"]]
    if settings.name == "prodigy":
        return [make_prodigy(settings, plain)]
    if settings.name == "adamw8bit":
        return [make_adamw8bit(settings, plain)]
    return [make_adamw(settings, plain)]


def make_adamw(settings: OptimizerSettings, groups: list[dict[str, Any]]) -> Optimizer:
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def make_adamw8bit(settings: OptimizerSettings, groups: list[dict[str, Any]]) -> Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ModuleNotFoundError(
            "optimizer.name is adamw8bit, which needs bitsandbytes: pip install bitsandbytes"
        ) from error
    return AdamW8bit(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def make_prodigy(settings: OptimizerSettings, groups: list[dict[str, Any]]) -> Optimizer:
    """Prodigy (arXiv 2306.06101), which estimates the step size itself."""
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise ModuleNotFoundError(
            "optimizer.name is prodigy, which needs prodigyopt: pip install prodigyopt"
        ) from error
    if any(group["rate"] != 1 for group in groups):
        raise ValueError("Prodigy has one step size for all parameters: set every rate to 1, or use adamw")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that its weight decay is AdamW's
        return Prodigy(
            groups,
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            use_bias_correction=settings.bias_correction,
            safeguard_warmup=settings.safeguard_warmup,
        )


def make_muon(settings: OptimizerSettings, groups: Sequence[Mapping[str, Any]]) -> list[Optimizer]:
    """Muon for the matrices of blocks, AdamW for everything else.

    Muon's update is scaled to the size AdamW's has, so both take the same learning rate.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer.name muon needs torch 2.9 or newer, this is {torch.__version__}; use adamw")
    matrices, others = [], []
    for group in groups:
        inside = [value for name, value in group["params"] if is_block_matrix(name, value)]
        outside = [value for name, value in group["params"] if not is_block_matrix(name, value)]
        matrices += [{**group, "params": inside}] if inside else []
        others += [{**group, "params": outside}] if outside else []
    optimizers = [make_adamw(settings, others)] if others else []
    if matrices:
        muon = torch.optim.Muon(
            matrices,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        optimizers.append(muon)
    return optimizers


def is_block_matrix(name: str, value: torch.Tensor) -> bool:
    return "blocks." in name and name.endswith(".weight") and value.ndim == 2
