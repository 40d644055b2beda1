"""Cross entropy and z-loss against statements written out in float64, with gradients."""

from __future__ import annotations

import pytest
import torch

from oracles import pure_training as oracle
from parity import golden, pure_golden
from realisr.models.pure.config import ChameleonConfig
from realisr.models.pure.released import fuse
from realisr.models.pure.transformer import Chameleon
from realisr.training.pure.losses import counted_positions, token_losses

LABELS = torch.tensor(
    [
        [-100, -100, 3, 5, 1, -100, -100, 2],  # two answers, the second at the very end
        [-100, 7, 7, -100, -100, -100, -100, -100],  # padding
        [6, -100, -100, -100, -100, -100, -100, -100],  # a first token that nothing predicts
    ]
)


def computed(hidden, weight, labels, with_z_loss, chunk):
    rows, following, own = counted_positions(labels, with_z_loss)
    return token_losses(hidden.flatten(0, 1)[rows], following, own, lambda states: (states @ weight.T).float(), chunk)


def doubles(hidden, weight, labels, z_weight):
    """The same written with torch in float64 on whole logits, for its gradients."""
    logits = hidden.double() @ weight.double().T
    following = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)
    chosen = logits.log_softmax(-1).gather(-1, following.clamp(min=0)[..., None])[..., 0]
    entropy = -(chosen * (following != -100)).sum() / (following != -100).sum()
    squares = torch.log(torch.exp(logits).sum(-1)) ** 2
    return entropy + z_weight * (squares * (labels != -100)).sum() / (labels != -100).sum()


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_losses_are_those_written_out(chunk):
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(3, 8, 6, generator=generator), torch.randn(9, 6, generator=generator)
    found = computed(hidden, weight, LABELS, True, chunk)
    entropy, z_loss = oracle.losses((hidden.double() @ weight.double().T).tolist(), LABELS.tolist())
    assert found["cross_entropy"].item() == pytest.approx(entropy, rel=1e-5)
    assert found["z_loss"].item() == pytest.approx(z_loss, rel=1e-5)
    without = computed(hidden, weight, LABELS, False, chunk)
    assert without["cross_entropy"].item() == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("z_weight", [0.0, 0.1])
def test_gradients_are_those_of_whole_logits_in_float64(z_weight):
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(3, 8, 6, generator=generator).requires_grad_()
    weight = torch.randn(9, 6, generator=generator).requires_grad_()
    found = computed(hidden, weight, LABELS, bool(z_weight), 4)
    (found["cross_entropy"] + z_weight * found["z_loss"]).backward()
    expected = torch.autograd.grad(doubles(hidden, weight, LABELS, z_weight), [hidden, weight])
    for parameter, gradient in zip((hidden, weight), expected, strict=True):
        torch.testing.assert_close(parameter.grad.double(), gradient.double(), rtol=1e-4, atol=1e-6)


def test_accuracy_counts_targets_alone():
    labels = torch.tensor([[-100, 1, 2, 0, -100]])
    logits = torch.eye(3)[torch.tensor([1, 0, 0, 2, 1])][None]  # right, wrong, right; then positions that count not
    found = computed(logits, torch.eye(3), labels, False, 2)
    assert found["accuracy"].item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("case", pure_golden.cases("transformer_*"))
def test_losses_of_the_authors_code(case):
    data, tensors = pure_golden.weights(case.path.name.removesuffix(golden.SUFFIX))
    config = ChameleonConfig.from_json(data["config"])
    network = Chameleon(config)
    network.load_state_dict(fuse(tensors, config), strict=True)
    with torch.no_grad():
        hidden = network.eval()(case["in.input_ids"])
    rows, following, own = counted_positions(case["in.labels"], True)
    found = token_losses(hidden.flatten(0, 1)[rows], following, own, network.logits)
    golden.assert_within(found["cross_entropy"][None].detach(), case["out.loss"], 1e-5)
    golden.assert_within(found["z_loss"][None].detach(), case["out.z_loss_reference_alignment"], 1e-4)
