"""Degradation: repeatable, of the right size and range, and every stage does what it says."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from realisr.models.degradation.jpeg import jpeg
from realisr.models.degradation.kernels import (
    KERNEL_KINDS,
    KernelOptions,
    draw_final_sinc,
    draw_kernel,
    filter_image,
    sinc_kernel,
)
from realisr.models.degradation.noise import gaussian_noise, poisson_noise
from realisr.models.degradation.real_world import FIRST_ROUND, SECOND_ROUND, RealWorldDegradation
from realisr.models.degradation.simple import SimpleDegradation
from realisr.models.image import to_bytes

SECOND_ORDER = RealWorldDegradation(scale=4)
FIRST_ORDER = RealWorldDegradation(scale=4, rounds=(FIRST_ROUND,))
SIMPLE = SimpleDegradation(scale=2, blur_sigma=0.8, noise_sigma=10 / 255, jpeg_quality=60)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def picture() -> torch.Tensor:
    """Two images `[2, 3, 72, 96]` with edges, smooth parts and texture."""
    y, x = torch.meshgrid(torch.arange(72.0), torch.arange(96.0), indexing="ij")
    base = 0.5 + 0.3 * torch.sin(x / 7) * torch.cos(y / 5) + 0.2 * ((x + y) % 24 < 12)
    colors = torch.tensor([[1.0, 0.7, 0.4], [0.5, 0.9, 1.0]])
    return (base * colors[:, :, None, None]).clamp(0, 1)


@pytest.mark.parametrize("degrade", [SIMPLE, FIRST_ORDER, SECOND_ORDER], ids=["simple", "first order", "second order"])
def test_same_seed_same_image(picture, degrade):
    first = degrade(picture, generator(3))
    assert torch.equal(first, degrade(picture, generator(3)))
    assert not torch.equal(first, degrade(picture, generator(4)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [1, 2.5, 4])
@pytest.mark.parametrize("rounds", [(FIRST_ROUND,), (FIRST_ROUND, SECOND_ROUND)], ids=["first", "second"])
def test_size_range_and_levels(picture, rounds, scale, seed):
    low = RealWorldDegradation(scale, rounds)(picture, generator(seed))
    assert low.shape == (2, 3, round(72 / scale), round(96 / scale))
    assert low.min() >= 0
    assert low.max() <= 1
    assert torch.allclose(low * 255, (low * 255).round(), atol=1e-3)


@pytest.mark.parametrize("degrade", [SIMPLE, FIRST_ORDER, SECOND_ORDER])
def test_a_single_pixel_survives(degrade):
    assert degrade(torch.full((1, 3, 1, 1), 0.5), generator()).shape == (1, 3, 1, 1)


def test_noise_of_two_rounds_adds_up():
    """With everything but grey Gaussian noise switched off, two rounds have sqrt(2) times the noise of one."""
    noisy = replace(
        FIRST_ROUND,
        blur_chance=0.0,
        resize_weights=(0, 0, 1),
        gaussian_sigma=(0.05, 0.05),
        gaussian_chance=1.0,
        grey_chance=1.0,
        jpeg_quality=(100, 100),
    )
    flat = torch.full((1, 3, 128, 128), 0.5)
    one, two = (RealWorldDegradation(1, (noisy,) * count, sinc_chance=0.0)(flat, generator()).std() for count in (1, 2))
    assert one.item() == pytest.approx(0.05, rel=0.05)
    assert two.item() == pytest.approx(0.05 * math.sqrt(2), rel=0.05)


@pytest.mark.parametrize("kind", range(len(KERNEL_KINDS)), ids=KERNEL_KINDS)
def test_every_kind_of_kernel_sums_to_one(kind):
    only = tuple(float(index == kind) for index in range(len(KERNEL_KINDS)))
    for seed in range(20):
        kernel = draw_kernel(KernelOptions(sinc_chance=0.0, weights=only), generator(seed))
        assert kernel.shape == (21, 21)
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
        assert (kernel >= 0).all()
        if KERNEL_KINDS[kind].endswith("iso") and "aniso" not in KERNEL_KINDS[kind]:
            assert torch.allclose(kernel, kernel.T, atol=1e-6)


def test_anisotropic_kernels_have_a_direction():
    only = tuple(float(name == "aniso") for name in KERNEL_KINDS)
    kernels = [draw_kernel(KernelOptions(sinc_chance=0.0, weights=only), generator(seed)) for seed in range(10)]
    assert any(not torch.allclose(kernel, kernel.T, atol=1e-3) for kernel in kernels)


@pytest.mark.parametrize("cutoff", [math.pi / 3, 2.0, math.pi])
def test_sinc_is_a_low_pass(cutoff):
    kernel = sinc_kernel(cutoff, 21)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    response = torch.fft.fft2(kernel, s=(64, 64)).abs()
    passed, stopped = response[0, 2], response[0, 32]
    assert passed == pytest.approx(1, abs=0.1)
    if cutoff < 2.5:
        assert stopped < 0.1


def test_final_sinc_is_the_identity_when_not_drawn(picture):
    identity = draw_final_sinc(generator(), KernelOptions().sizes, chance=0.0)
    assert torch.allclose(filter_image(picture, identity), picture, atol=1e-6)
    drawn = draw_final_sinc(generator(), KernelOptions().sizes, chance=1.0)
    assert not torch.allclose(filter_image(picture, drawn), picture, atol=1e-3)


def test_filtering_matches_the_definition():
    """An impulse comes out as the mirrored kernel of a correlation."""
    impulse = torch.zeros(1, 1, 41, 41)
    impulse[0, 0, 20, 20] = 1
    kernel = torch.rand(21, 21, generator=generator())
    assert torch.allclose(filter_image(impulse, kernel)[0, 0, 10:31, 10:31], kernel.flip(0, 1), atol=1e-6)


def test_gaussian_noise_has_its_strength_and_colour():
    image = torch.full((2, 3, 128, 128), 0.5)
    noise = gaussian_noise(image, torch.tensor([0.02, 0.1]), torch.tensor([False, True]), generator())
    assert noise[0].std().item() == pytest.approx(0.02, rel=0.03)
    assert noise[1].std().item() == pytest.approx(0.1, rel=0.03)
    assert not torch.equal(noise[0, 0], noise[0, 1])
    assert torch.equal(noise[1, 0], noise[1, 1])


def test_poisson_noise_grows_with_brightness():
    ramp = torch.linspace(0, 1, 256).expand(1, 3, 256, 256)
    noise = poisson_noise(ramp, torch.tensor([1.0]), torch.tensor([False]), generator())
    dark, bright = noise[..., 10:40].std(), noise[..., 210:240].std()
    assert bright / dark == pytest.approx(3.0, rel=0.15)
    # 256 levels count as 256 photons: variance = value / 256.
    assert bright.item() == pytest.approx(math.sqrt(225 / 255 / 256), rel=0.1)
    assert noise.mean().abs() < 1e-3


def test_jpeg_quality_orders_the_error(picture):
    errors = [(jpeg(picture, [quality] * 2) - picture).square().mean().item() for quality in (10, 50, 95)]
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("quality", [1, 30, 75, 95, 100])
def test_jpeg_is_pillows(picture, quality):
    """Two libraries around one codec: colour subsampling and rounding are those of files."""
    for image, compressed in zip(picture, jpeg(picture, [quality] * 2), strict=True):
        file = io.BytesIO()
        Image.fromarray(to_bytes(image).permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=quality)
        levels = np.asarray(Image.open(file)).astype(int)
        assert abs(to_bytes(compressed).permute(1, 2, 0).numpy() - levels).max() <= 1


def test_jpeg_takes_a_quality_for_each_image(picture):
    mixed = jpeg(picture, [10, 95])
    assert torch.equal(mixed[:1], jpeg(picture[:1], [10]))
    assert torch.equal(mixed[1:], jpeg(picture[1:], [95]))
    with pytest.raises(ValueError, match="1 JPEG qualities for 2 images"):
        jpeg(picture, [50])
    with pytest.raises(ValueError, match="JPEG quality is 0"):
        jpeg(picture, [0, 50])


@pytest.mark.parametrize(
    "changed",
    [{"blur_sigma": 0.0}, {"noise_sigma": 0.0}, {"jpeg_quality": None}, {"scale": 3}],
    ids=lambda changed: next(iter(changed)),
)
def test_every_part_of_the_simple_degradation_has_effect(picture, changed):
    other = replace(SIMPLE, **changed)(picture, generator())
    assert other.shape != SIMPLE(picture, generator()).shape or not torch.equal(other, SIMPLE(picture, generator()))


def test_simple_degradation_with_nothing_to_do_keeps_the_image(picture):
    kept = SimpleDegradation(scale=1)(picture, generator())
    assert (kept - picture).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SimpleDegradation(scale=0.5), "scale is 0.5"),
        (lambda: SimpleDegradation(noise_sigma=-1), "must not be negative"),
        (lambda: RealWorldDegradation(scale=0), "scale is 0"),
        (lambda: RealWorldDegradation(rounds=()), "at least one round"),
    ],
)
def test_impossible_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
