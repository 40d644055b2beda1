"""VOSR's training objectives (arXiv 2604.03225) sample by sample in float64, and their gradients by differences.

The network is a tiny one of its own: per pixel tanh(W [lq; x] + a t + b r + d mean(z)), with the parameters in a flat
vector. Objectives take two vectors: `theta`, which moves, and `fixed`, at which everything behind a stop-gradient is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray
CHANNELS = 2
PARAMETERS = CHANNELS * 2 * CHANNELS + 3 * CHANNELS


def velocity(theta: Array, lq: Array, x: Array, t: float, r: float, z: Array) -> Array:
    """`[C, H, W]` from the LQ latent and the noisy one, both `[C, H, W]`, and features `[M, E]`."""
    weight = theta[: 2 * CHANNELS**2].reshape(CHANNELS, 2 * CHANNELS)
    a, b, d = theta[2 * CHANNELS**2 :].reshape(3, CHANNELS)
    stacked = np.concatenate([lq, x])
    shift = a * t + b * r + d * z.mean()
    return np.tanh(np.einsum("ok,khw->ohw", weight, stacked) + shift[:, None, None])


def sigmoid(value: float) -> float:
    return 1 / (1 + np.exp(-value))


def conditions(draws: Mapping[str, Any], i: int) -> dict[str, Array]:
    """Of sample i: the full, weak and mixed pair."""
    lq, z = draws["lq"][i], draws["z"][i]
    alpha = sigmoid(draws["strength_mean"] + draws["strength_std"] * draws["strength_normal"][i])
    full = alpha * lq + np.sqrt(1 - alpha**2) * draws["lq_noise"][i]
    weak = draws["weak_strength"] * lq
    is_weak = draws["weak_uniform"][i] < draws["weak_chance"]
    return {
        "full": full,
        "full_z": z,
        "weak": weak,
        "weak_z": np.zeros_like(z),
        "lq": weak if is_weak else full,
        "z": np.zeros_like(z) if is_weak else z,
    }


def flow(theta: Array, fixed: Array, draws: Mapping[str, Any]) -> float:
    """Multi-step objective; with `balance` the samples count t^2 s / (s + mse(hq, condition))."""
    errors = []
    for i, (hq, eps, t) in enumerate(zip(draws["hq"], draws["eps"], draws["t"], strict=True)):
        pair = conditions(draws, i)
        x = (1 - t) * hq + t * eps
        error = np.mean((velocity(theta, pair["lq"], x, t, 0.0, pair["z"]) - (eps - hq)) ** 2)
        if draws.get("balance") is not None:
            scale = draws["balance"]
            error *= t**2 * scale / (scale + np.mean((hq - pair["lq"]) ** 2))
        errors.append(error)
    return float(np.mean(errors))


def distillation(theta: Array, fixed: Array, draws: Mapping[str, Any]) -> float:
    """One-step objective of a student at theta; the teacher has its own parameters and does not read r."""
    first, second = [], []
    for i, (hq, eps) in enumerate(zip(draws["hq"], draws["eps"], strict=True)):
        pair = conditions(draws, i)
        t = max(draws["uniforms"][i])
        r = t * (1 - draws["shrink"][i])
        x = (1 - t) * hq + t * eps
        full = velocity(draws["teacher"], pair["full"], x, t, 0.0, pair["full_z"])
        weak = velocity(draws["teacher"], pair["weak"], x, t, 0.0, pair["weak_z"])
        scale = draws["guidance"] if draws["t_start"] <= t <= draws["t_end"] else 1.0
        v = weak + scale * (full - weak)

        def student(parameters: Array, y: Array, start: float, end: float, pair: Any = pair) -> Array:
            return velocity(parameters, pair["lq"], y, start, end, pair["z"])

        first.append(np.mean((student(theta, x, t, t) - v) ** 2))
        goal = (rcgm if draws["method"] == "rcgm" else shortcut)(lambda *a, f=student: f(fixed, *a), x, t, r, v, draws)
        second.append(np.mean((student(theta, x, t, r) - goal) ** 2))
    return float(np.mean(first) + draws["u_weight"] * np.mean(second))


def rcgm(student: Callable[..., Array], x: Array, t: float, r: float, v: Array, draws: Mapping[str, Any]) -> Array:
    """Where the mean velocity over [r, t] is drawn to."""
    delta, steps = draws["delta_t"], draws["n_steps"]
    middle = max(t - delta, r)
    y = x - (t - middle) * v
    travelled = np.zeros_like(x)
    times = np.linspace(middle, r, steps + 1)
    for start, end in pairwise(times):
        moved = (start - end) * student(y, start, end)
        y, travelled = y - moved, travelled + moved
    length = max(t - r, 1e-6)
    k1, k2 = (1.0, 1 / length) if t < r + delta + 1e-6 else (length / delta, 1 / delta)
    u = student(x, t, r)
    return u - np.clip(k1 * u - k2 * travelled - v, -1, 1)


def shortcut(student: Callable[..., Array], x: Array, t: float, r: float, v: Array, draws: Mapping[str, Any]) -> Array:
    middle = (t + r) / 2
    one = student(x, t, middle)
    return (one + student(x - (t - r) / 2 * one, middle, r)) / 2


def gradient(objective: Callable[[Array, Array, Any], float], theta: Array, draws: Mapping[str, Any]) -> Array:
    """Central differences."""
    step, found = 1e-6, np.zeros_like(theta)
    for index in range(len(theta)):
        moved = np.zeros_like(theta)
        moved[index] = step
        found[index] = (objective(theta + moved, theta, draws) - objective(theta - moved, theta, draws)) / (2 * step)
    return found
