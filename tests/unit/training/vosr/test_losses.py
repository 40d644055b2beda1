"""VOSR's objectives, as the engine calls them, against an independent float64 statement: values and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oracles import vosr_losses as oracle
from realisr.training.engine.draws import Draws
from realisr.training.vosr.config import ConditionSettings, TimeSettings
from realisr.training.vosr.losses import Distillation
from realisr.training.vosr.network import FlowMatching, OneStepDistillation

COUNT, SIZE, TOKENS, WIDTH = 6, 4, 3, 5
LATENT = (COUNT, oracle.CHANNELS, SIZE, SIZE)


class TinyNetwork(nn.Module):
    """The oracle's network in torch."""

    def __init__(self, theta: np.ndarray):
        super().__init__()
        self.theta = nn.Parameter(torch.from_numpy(theta).float())

    def forward(self, x: Tensor, t: Tensor, r: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        assert z is not None
        channels = oracle.CHANNELS
        weight = self.theta[: 2 * channels**2].view(channels, 2 * channels)
        a, b, d = self.theta[2 * channels**2 :].view(3, channels)
        end = torch.zeros_like(t) if r is None else r
        shift = t[:, None] * a + end[:, None] * b + z.mean(dim=(1, 2))[:, None] * d
        return torch.tanh(torch.einsum("ok,bkhw->bohw", weight, x) + shift[:, :, None, None])


class ListedDraws(Draws):
    """Gives out tensors that were drawn before, in order, and says which shapes it was asked for."""

    def __init__(self, *values: Any):
        super().__init__(0, 0)
        self.values = list(values)

    def normal(self, *shape: int) -> Tensor:
        value = torch.as_tensor(np.asarray(self.values.pop(0))).float()
        assert value.shape == shape
        return value

    uniform = normal


def common_draws(rng: np.random.Generator) -> dict[str, Any]:
    low, high = 0.05, 0.25
    share = rng.random()
    return {
        "hq": rng.normal(size=LATENT),
        "lq": rng.normal(size=LATENT),
        "z": rng.normal(1, 1, (COUNT, TOKENS, WIDTH)),
        "eps": rng.normal(size=LATENT),
        "strength_normal": rng.normal(size=COUNT),
        "lq_noise": rng.normal(size=LATENT),
        "weak_uniform": np.array([0.3, 0.05, 0.9, 0.02, 0.5, 0.7]),
        "share": share,
        "weak_strength": low + (high - low) * share,
        "weak_chance": 0.1,
        "strength_mean": 0.5,
        "strength_std": 1.0,
    }


CONDITION = ConditionSettings(strength_mean=0.5, strength_std=1.0)
"""With visible noise: the default keeps 0.993 of the amplitude."""


def batch(draws: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(draws[name]).float() for name in ("hq", "lq", "z")}


def condition_draws(draws: dict[str, Any]) -> list[Any]:
    return [[draws["share"]], draws["strength_normal"], draws["lq_noise"], draws["weak_uniform"]]


def assert_agree(network: Any, given: ListedDraws, objective: Any, theta: np.ndarray, draws: dict[str, Any]) -> None:
    loss = network("train", batch(draws), given)["loss"]
    assert not given.values, "not all draws were used"
    loss.backward()
    assert loss.item() == pytest.approx(objective(theta, theta, draws), rel=1e-5)
    expected = oracle.gradient(objective, theta, draws)
    assert np.abs(expected).min() > 1e-6, "every parameter must matter for the comparison to show something"
    found = network.dit.theta.grad.double().numpy()
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("balance", [None, 0.05])
@pytest.mark.parametrize("logit_normal", [None, (0.4, 1.2)])
def test_flow_matching(balance: float | None, logit_normal: tuple[float, float] | None):
    rng = np.random.default_rng(1)
    theta, draws = rng.normal(size=oracle.PARAMETERS) * 0.5, common_draws(rng)
    drawn, at_noise = (rng.random if logit_normal is None else rng.normal)(size=COUNT), rng.random(COUNT)
    t = drawn if logit_normal is None else oracle.sigmoid(logit_normal[0] + logit_normal[1] * drawn)
    draws |= {"t": np.where(at_noise < 0.4, 1.0, t), "balance": balance}
    assert 0 < (at_noise < 0.4).sum() < COUNT
    times = TimeSettings(logit_normal=logit_normal, noise_only_chance=0.4)
    tiny: Any = TinyNetwork(theta)
    network = FlowMatching(tiny, CONDITION, times, balance)
    # The end time is not given to a multi-step network: its parameters do not count.
    theta[2 * oracle.CHANNELS**2 + oracle.CHANNELS : -oracle.CHANNELS] = 0
    given = ListedDraws(*condition_draws(draws), draws["eps"], drawn, at_noise)
    loss = network("train", batch(draws), given)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(oracle.flow(theta, theta, draws), rel=1e-5)
    expected = oracle.gradient(oracle.flow, theta, draws)
    found = tiny.theta.grad.double().numpy()
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("method", ["rcgm", "shortcut"])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7)])
def test_distillation(method: Any, interval: tuple[float, float]):
    rng = np.random.default_rng(2)
    theta, draws = rng.normal(size=oracle.PARAMETERS) * 0.5, common_draws(rng)
    teacher = rng.normal(size=oracle.PARAMETERS) * 0.5
    draws |= {
        "weak_strength": 0.1,
        "teacher": teacher,
        "uniforms": np.array([[0.2, 0.9], [0.5, 0.4], [0.25, 0.1], [0.6, 0.3], [0.8, 0.81], [0.65, 0.1]]),
        # From no step at all over one shorter than delta to the whole way.
        "shrink": np.array([0.7, 0.0, 1.0, 0.004, 0.3, 0.9]),
        "method": method,
        "guidance": 0.5,
        "t_start": interval[0],
        "t_end": interval[1],
        "delta_t": 0.01,
        "n_steps": 2,
        "u_weight": 0.8,
    }
    tiny: Any = TinyNetwork(theta)
    frozen: Any = TinyNetwork(teacher)
    network = OneStepDistillation(tiny, frozen, CONDITION, 0.1, Distillation(method, 0.5, *interval, u_weight=0.8))
    given = ListedDraws(*condition_draws(draws), draws["eps"], draws["uniforms"], draws["shrink"])
    assert_agree(network, given, oracle.distillation, theta, draws)
    assert frozen.theta.grad is None


class ConstantVelocity:
    """A network whose velocity does not depend on anything."""

    def __init__(self, value: Tensor):
        self.value = value

    def __call__(self, x, t, r=None, z=None):
        return self.value.expand(x.shape[0], -1, -1, -1)


@pytest.mark.parametrize("method", ["rcgm", "shortcut"])
def test_a_student_with_the_teachers_straight_field_has_no_loss(method):
    """On a constant field one long step equals many short ones, so both consistency terms vanish."""
    from realisr.training.vosr.losses import ConditionScheme

    field = ConstantVelocity(torch.randn(1, 4, 8, 8))
    hq, lq, eps = torch.randn(3, 4, 4, 8, 8)
    condition = ConditionScheme().conditions(lq, None, 0.1, torch.randn(4), torch.randn(4, 4, 8, 8), torch.rand(4))
    t, r = torch.tensor([0.9, 0.5, 1.0, 0.3]), torch.tensor([0.1, 0.499, 0.0, 0.3])
    total, instantaneous = Distillation(method).losses(field, field, hq, condition, t, r, eps)
    assert instantaneous.item() == pytest.approx(0, abs=1e-10)
    assert total.item() == pytest.approx(0, abs=1e-8)
