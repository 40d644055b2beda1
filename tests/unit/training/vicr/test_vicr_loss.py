"""VICR's loss, packing and mask against numbers written out one by one, gradients included."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oracles import vicr_training as oracle

CHANNELS, HEIGHT, WIDTH = 16, 4, 8


class NoVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text_embedder = nn.ModuleDict({"linear_1": nn.Linear(6, 8).double()})

    def forward(self, *parts: Tensor) -> Tensor:
        return parts[-1]


class LinearFlux(nn.Module):
    """In place of FLUX's transformer: every token times one matrix, in float64."""

    def __init__(self, matrix: np.ndarray):
        super().__init__()
        self.config = SimpleNamespace(
            in_channels=384,
            out_channels=64,
            num_attention_heads=1,
            attention_head_dim=8,
            pooled_projection_dim=6,
            guidance_embeds=True,
        )
        self.time_text_embed = NoVector()
        self.matrix = nn.Parameter(torch.from_numpy(matrix))

    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor]:
        return (hidden_states @ self.matrix.T,)


@pytest.fixture
def numbers() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    latents = {name: rng.standard_normal((2, CHANNELS, HEIGHT, WIDTH)) for name in ("clean", "masked", "noise")}
    return {**latents, "time": np.array([0.2, 0.85]), "matrix": rng.standard_normal((64, 384)) / 20}


def batch_of(numbers: dict[str, np.ndarray]) -> dict[str, Tensor]:
    tensors = {name: torch.from_numpy(value) for name, value in numbers.items() if name != "matrix"}
    return {**tensors, "text": torch.zeros(2, 3, 5), "pooled": torch.zeros(2, 6)}


def network_of(numbers: dict[str, np.ndarray]):
    from realisr.training.vicr.network import DiptychFill

    return DiptychFill(LinearFlux(numbers["matrix"]), None, guidance=30.0)


def test_loss_and_gradient(numbers):
    network = network_of(numbers)
    loss = network("train", batch_of(numbers), None)["loss"]
    loss.backward()
    expected, gradient = oracle.loss_and_gradient(**numbers)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(network.transformer.matrix.grad.numpy(), gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["clean", "noise", "masked"])
def test_the_left_target_does_not_count(numbers, name):
    """The left half of the noisy latent is read; as a target it is not."""
    from realisr.training.vicr.losses import right_panel_loss

    velocity, clean, noise = (torch.from_numpy(numbers[key]) for key in ("masked", "clean", "noise"))
    before = right_panel_loss(velocity, clean, noise)
    changed = {"masked": velocity, "clean": clean, "noise": noise}
    changed[name] = changed[name].clone()
    changed[name][..., : WIDTH // 2] += 1
    assert torch.equal(right_panel_loss(changed["masked"], changed["clean"], changed["noise"]), before)
    changed[name][..., WIDTH // 2] += 1
    assert not torch.equal(right_panel_loss(changed["masked"], changed["clean"], changed["noise"]), before)


def test_pack_is_undone_by_unpack():
    from realisr.training.flux.latent import pack, unpack

    latent = torch.randn(2, 5, 6, 10)
    assert torch.equal(unpack(pack(latent), 6, 10), latent)


def test_shifted_times_are_the_samplers():
    """Uniform times, shifted, are FLUX Fill's levels."""
    from realisr.models.vicr.sigmas import flow_match_sigmas
    from realisr.training.flux.latent import shifted

    for tokens in (32, 2048):
        uniform = torch.linspace(1, 1 / 30, 30, dtype=torch.float64)
        torch.testing.assert_close(
            shifted(uniform, tokens).float(), flow_match_sigmas(tokens, 30)[:-1], rtol=1e-6, atol=1e-7
        )
