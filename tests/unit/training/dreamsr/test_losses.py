"""Every term of DreamSR's losses against straight lines in float64, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.dreamsr_training import POOLED, SIDE, TEXT, flux_weights, head_weights, vgg_weights
from harness.straight_line_flux import Control, Prompt, doubled, velocity, with_lora
from oracles import dreamsr_losses as oracle

BATCH, CELLS, GUIDANCE = 4, SIDE // 2, 3.5
NUMBER = 4
"""Of the draws: one of its four times is below 0.2."""
TOLERANCE = 2e-4
"""Of a gradient, relative to its largest entry: float32 through some twenty layers and VGG-16."""


def perturbed(network: torch.nn.Module, seed: int) -> None:
    """Give what starts at zero values, so that every term depends on every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            if not value.any():
                value.copy_(0.02 * torch.randn(value.shape, generator=generator))


def prepared(seed: int = 11) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        **{name: randn(BATCH, 16, CELLS, CELLS) for name in ("hq", "lq", "condition")},
        "hq_image": randn(BATCH, 3, SIDE, SIDE).clamp(-1, 1),
        "tokens": randn(BATCH, 6, TEXT),
        "pooled": randn(BATCH, POOLED),
        "local_tokens": randn(BATCH, 6, TEXT),
        "local_pooled": randn(BATCH, POOLED),
    }


def doubled_decoder(network: Any) -> Callable[[Tensor], Tensor]:
    """diffusers' decoder in float64, with FLUX's scale and shift written out."""
    decoder = deepcopy(network.decoder.decoder).double()
    return lambda latent: decoder(latent / 0.3611 + 0.1159)


def perceptual(image: Tensor, reference: Tensor) -> Tensor:
    return oracle.lpips(vgg_weights(), head_weights(), image, reference)


def prompt(batch: dict[str, Tensor], index: int, local: bool = False) -> Prompt:
    prefix = "local_" if local else ""
    one = slice(index, index + 1)
    return Prompt(batch[prefix + "tokens"][one].double(), batch[prefix + "pooled"][one].double(), GUIDANCE)


def leaves(network: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters in float64, as leaves of a graph of their own."""
    return {name: value.detach().double().requires_grad_() for name, value in network.state_dict().items()}


def assert_same_gradients(found: dict[str, Tensor | None], expected: dict[str, Tensor]) -> None:
    largest = max(float(value.grad.abs().max()) for value in expected.values() if value.grad is not None)
    for name, value in expected.items():
        ours = found[name]
        if value.grad is None:  # the last control block's unread half, where there is one
            assert ours is None or not ours.any(), name
            continue
        assert ours is not None, name
        error = float((ours.double() - value.grad).abs().max())
        assert error <= TOLERANCE * max(float(value.grad.abs().max()), 1e-3 * largest), name


def test_lpips(models):
    from realisr.training.dreamsr.lpips import LPIPS

    network = LPIPS.load(models / "vgg16.pth", models / "lpips.pth")
    image = (2 * torch.rand(2, 3, 40, 32) - 1).requires_grad_()
    reference = 2 * torch.rand(2, 3, 40, 32) - 1
    found = network(image, reference)
    found.sum().backward()
    double = image.detach().double().requires_grad_()
    expected = torch.stack([perceptual(a, b) for a, b in zip(double, reference.double(), strict=True)])
    expected.sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)
    assert (image.grad.double() - double.grad).abs().max() <= 1e-3 * double.grad.abs().max()
    assert not any(value.requires_grad for value in network.parameters())


def test_lpips_of_equal_images_is_zero_with_finite_gradients(models):
    """Where all channels of a place are 0 as well, whose norm has no derivative."""
    from realisr.training.dreamsr.lpips import LPIPS

    network = LPIPS.load(models / "vgg16.pth", models / "lpips.pth")
    with torch.no_grad():
        network.features[0].bias.fill_(-100.0)
    image = torch.zeros(1, 3, 32, 32, requires_grad=True)
    distance = network(image, torch.zeros(1, 3, 32, 32))
    distance.sum().backward()
    assert float(distance.detach()) == 0 and torch.isfinite(image.grad).all()


@pytest.mark.parametrize("residual", [True, False])
def test_stage_one(method, residual):
    """Eq. 4-6: velocity for all samples, pixels and LPIPS for those at t < 0.2."""
    from realisr.training.engine.draws import Draws

    made = method(control={"layers": 2, "text_residual": residual})
    network, batch = made.network, prepared()
    perturbed(network.flux.control, 5)
    same = Draws(0, NUMBER)
    noise, times = same.normal(*batch["hq"].shape), same.uniform(BATCH)
    assert 0 < int((times < 0.2).sum()) < BATCH, "both kinds of sample are in the batch"

    found = network("control", batch, Draws(0, NUMBER))
    found["loss"].backward()

    flux, control = doubled(flux_weights()), leaves(network.flux.control)

    def predict(z_t: Tensor, t: float, index: int) -> Tensor:
        image = batch["condition"][index : index + 1].double()
        steering = Control(control, image, prompt(batch, index, local=True), (0, 1), residual=residual)
        return velocity(flux, z_t, t, prompt(batch, index), steering)

    decode = doubled_decoder(network)
    double = {name: batch[name].double() for name in ("hq", "hq_image")}
    terms = oracle.stage_one(predict, decode, perceptual, **double, noise=noise.double(), times=times.tolist())
    oracle.stage_one_loss(terms).backward()
    for name, value in terms.items():
        assert found[name].item() == pytest.approx(float(value), rel=1e-4), name
    assert found["loss"].item() == pytest.approx(float(oracle.stage_one_loss(terms)), rel=1e-4)
    assert_same_gradients({name: value.grad for name, value in network.flux.control.named_parameters()}, control)
    assert all(value.grad is None for value in network.flux.transformer.parameters())


def test_late_times_have_the_terms_of_early_ones(method):
    """Processes take the mean of their terms together, so that each must have all of them."""
    from realisr.training.engine.draws import Draws

    made = method()
    network, batch = made.network, prepared()
    number = next(n for n in range(100) if late(Draws(0, n), batch))
    found = network("control", batch, Draws(0, number))
    assert list(found) == list(network("control", batch, Draws(0, NUMBER))) == ["loss", "velocity", "pixel", "lpips"]
    assert found["pixel"] == found["lpips"] == 0 and found["loss"] == found["velocity"]


def late(draws: Any, batch: dict[str, Tensor]) -> bool:
    """Whether all times of a batch are above 0.2."""
    draws.normal(*batch["hq"].shape)
    return bool((draws.uniform(BATCH) >= 0.2).all())


def test_recomputed_activations_give_the_same_gradients(method):
    from realisr.training.engine.draws import Draws

    gradients = []
    for recompute in (False, True):
        made = method(gradient_checkpointing=recompute, lora={"rank": 4, "alpha": 4.0})
        perturbed(made.network.flux.control, 5)
        perturbed(made.network.flux.transformer, 6)
        for turn in ("control", "lora"):
            made.network(turn, prepared(), Draws(0, NUMBER))["loss"].backward()
        gradients.append([value.grad for value in made.network.parameters() if value.grad is not None])
    assert gradients[0] and len(gradients[0]) == len(gradients[1])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def lora_of(network: Any) -> dict[str, Tensor]:
    """The LoRA as its file would have it, in float64."""
    from realisr.training.dreamsr.lora import is_lora

    return {
        "transformer." + name.replace(".acceleration.", "."): value.detach().double().requires_grad_()
        for name, value in network.flux.transformer.named_parameters()
        if is_lora(name)
    }


def test_lora_turn(method):
    """Eq. 7: latent, pixels, LPIPS and the discriminator's scores, through one forward on the LQ latent."""
    from realisr.training.engine.draws import Draws

    made = method(lora={"rank": 4, "alpha": 6.0, "removal_time": 0.9})
    network, batch = made.network, prepared()
    perturbed(network.flux.control, 5)
    perturbed(network.flux.transformer, 6)
    found = network("lora", batch, Draws(0, 0))
    found["loss"].backward()

    control, judge = doubled(network.flux.control.state_dict()), network.discriminator.state_dict()
    lora = lora_of(network)
    merged = with_lora(flux_weights(), lora, strength=6.0 / 4)

    def predict(z: Tensor, t: float, index: int) -> Tensor:
        steering = Control(control, z, prompt(batch, index, local=True), (0, 1))
        return velocity(merged, z, t, prompt(batch, index), steering)

    terms = oracle.lora_terms(
        predict,
        doubled_decoder(network),
        perceptual,
        lambda image: oracle.discriminator(judge, image),
        batch["lq"].double(),
        batch["hq"].double(),
        batch["hq_image"].double(),
        0.9,
    )
    oracle.lora_loss(terms).backward()
    for name, value in terms.items():
        assert found[name].item() == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    assert found["loss"].item() == pytest.approx(float(oracle.lora_loss(terms)), rel=1e-4)
    ours = {
        "transformer." + name.replace(".acceleration.", "."): value.grad
        for name, value in network.flux.transformer.named_parameters()
        if ".lora_" in name
    }
    assert_same_gradients(ours, lora)


def test_discriminator_turn(method):
    """The hinge loss of real images and of what one forward with the LoRA makes, which gets no gradient."""
    from realisr.training.engine.draws import Draws

    made = method(lora={"rank": 4, "alpha": 4.0})
    network, batch = made.network, prepared()
    perturbed(network.flux.transformer, 6)
    found = network("discriminator", batch, Draws(0, 0))
    found["loss"].backward()
    weights = leaves(network.discriminator)
    merged = with_lora(flux_weights(), lora_of(network))
    decode = doubled_decoder(network)
    with torch.no_grad():
        # Its outputs are zero yet, so the control changes nothing.
        lq = batch["lq"].double()
        clean = [lq[i] - velocity(merged, lq[i : i + 1], 1.0, prompt(batch, i))[0] for i in range(BATCH)]
        fake = torch.cat([decode(each[None]) for each in clean])
    real = oracle.discriminator(weights, batch["hq_image"].double())
    expected = oracle.hinge(real, oracle.discriminator(weights, fake))
    expected.backward()
    assert found["loss"].item() == pytest.approx(float(expected), rel=1e-4)
    assert_same_gradients({name: value.grad for name, value in network.discriminator.named_parameters()}, weights)
    assert all(value.grad is None for value in network.flux.parameters())


def test_the_lora_is_on_in_its_own_turn_alone(method):
    from realisr.training.engine.draws import Draws

    plain, with_one = method(), method(lora={"rank": 4, "alpha": 4.0})
    for made in (plain, with_one):
        perturbed(made.network.flux.control, 5)
    perturbed(with_one.network.flux.transformer, 6)
    batch = prepared()
    before = with_one.network("control", batch, Draws(0, NUMBER))["loss"]
    removal = with_one.network("lora", batch, Draws(0, NUMBER))["latent"]
    after = with_one.network("control", batch, Draws(0, NUMBER))["loss"]
    expected = plain.network("control", batch, Draws(0, NUMBER))["loss"]
    assert torch.equal(before, expected) and torch.equal(after, expected)
    with torch.no_grad():
        for name, value in with_one.network.flux.transformer.named_parameters():
            if ".lora_B." in name:
                value.zero_()
    assert not torch.isclose(with_one.network("lora", batch, Draws(0, NUMBER))["latent"], removal)


def test_a_new_control_changes_nothing(method):
    """Copied blocks and zero outputs: FLUX's own velocity."""
    made = method()
    batch = prepared()
    t = torch.tensor([0.1, 0.4, 0.7, 1.0])
    with_control = made.network.velocity(batch["hq"], t, batch, batch["condition"])
    assert torch.equal(with_control, made.network.velocity(batch["hq"], t, batch, None))
    expected = torch.cat(
        [velocity(flux_weights(), batch["hq"][i : i + 1].double(), float(t[i]), prompt(batch, i)) for i in range(4)]
    )
    assert (with_control - expected).abs().max() <= 1e-5 * expected.abs().max()
