"""Training objectives against the reference, every random draw fixed: loss and gradients."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from parity.golden import Case, assert_within, cases, weights
from realisr.models.vosr.config import VOSRConfig
from realisr.models.vosr.dit import VOSRDiT
from realisr.training.vosr.losses import Conditions, ConditionScheme, Distillation, flow_matching_loss, step_times

TOLERANCE = 1e-5


def network(name: str) -> VOSRDiT:
    _, tensors = weights(name)
    model = VOSRDiT(VOSRConfig.from_shapes({key: tensor.shape for key, tensor in tensors.items()}))
    model.load_state_dict(tensors)
    return model


def conditions(losses: Case, weak_strength: float) -> Conditions:
    scheme = ConditionScheme(losses.parameters["cfg_ratio"], *losses.parameters["cond_strength_list"])
    return scheme.conditions(
        losses["in/lq"],
        losses["in/z"],
        weak_strength,
        losses["draw/cond_strength_normal"],
        losses["draw/lq_noise"],
        losses["draw/mask_uniform"],
    )


def require(losses: Case, name: str) -> None:
    if not losses.keys(f"{name}/out/*"):
        pytest.skip(f"{losses.path.name} has no results of {name}")


def assert_loss_and_gradients(losses: Case, name: str, model: VOSRDiT, loss: Tensor) -> None:
    assert_within(loss.detach().reshape(1), losses[f"{name}/out/loss"], TOLERANCE, f"{name} loss")
    loss.backward()
    parameters = dict(model.named_parameters())
    prefix = f"{name}/out/grad/"
    keys = losses.keys(prefix + "*")
    assert keys
    for key in keys:
        gradient = parameters[key.removeprefix(prefix)].grad
        assert gradient is not None
        assert_within(gradient, losses[key], TOLERANCE, key)


@pytest.mark.parametrize("losses", cases("train_losses"))
def test_flow_matching(losses: Any):
    require(losses, "fm")
    model = network(losses.parameters["fm_model"])
    condition = conditions(losses, losses.parameters["fm_weak_strength"])
    loss = flow_matching_loss(model, losses["in/hq"], condition, losses["draw/fm_t"], losses["draw/eps"])
    assert_loss_and_gradients(losses, "fm", model, loss)


@pytest.mark.parametrize("method", ["rcgm", "shortcut"])
@pytest.mark.parametrize("losses", cases("train_losses"))
def test_distillation(losses: Any, method: str):
    require(losses, method)
    student, teacher = network(losses.parameters["student"]), network(losses.parameters["teacher"])
    condition = conditions(losses, losses.parameters["distill_weak_strength"])
    t, r = step_times(losses["draw/tr_uniform"], losses["draw/beta"])
    objective = Distillation(
        method,
        guidance=losses.parameters["cfg_scale"],
        delta_t=losses.parameters["rcgm_delta_t"],
        n_steps=losses.parameters["rcgm_n_steps"],
        u_weight=losses.parameters["u_weight"],
    )
    loss, instantaneous = objective.losses(student, teacher, losses["in/hq"], condition, t, r, losses["draw/eps"])
    assert_within(instantaneous.detach().reshape(1), losses[f"{method}/mid/v_loss"], TOLERANCE, "velocity term")
    assert_loss_and_gradients(losses, method, student, loss)
