"""Degradations of batches: the models' own, drawn as documented, brought back to size."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError

from realisr.models.degradation.camera import CameraDegradation
from realisr.models.degradation.real_world import FIRST_ROUND, SECOND_ROUND, RealWorldDegradation
from realisr.models.degradation.simple import SimpleDegradation
from realisr.training.data.config import DataSettings
from realisr.training.data.degradation_config import DegradationSettings
from realisr.training.data.degradations import Degradations, draw_degradation
from realisr.training.engine.draws import Draws

READ = TypeAdapter(DegradationSettings)


def settings(kind: str, **values):
    return READ.validate_python({"kind": kind, **values})


def batch(count: int = 4, height: int = 48, width: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def group_generator(draws: Draws) -> torch.Generator:
    """The generator of the next kind of degradation."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=draws.generator)))


def test_the_default_is_the_model_with_vosrs_numbers():
    data = DataSettings.model_validate({"sources": [{"builtin": True}]})
    (default,) = data.degradation
    degradation = draw_degradation(default, torch.Generator().manual_seed(0))
    assert degradation == RealWorldDegradation(scale=4, rounds=(FIRST_ROUND, SECOND_ROUND))
    assert default.upscale == "random" and default.shared


def test_a_batch_is_degraded_as_one_call_of_the_model_does():
    degradations, hq = Degradations([settings("real_world")]), batch()
    for number in range(6):
        low = degradations.low(hq, Draws(3, number))
        generator = group_generator(Draws(3, number))
        torch.multinomial(torch.ones(1), 1, generator=generator)  # the scale
        assert torch.equal(low, RealWorldDegradation(4.0)(hq, generator))
        assert low.shape == (4, 3, 12, 16)


def test_photos_of_their_own_kernels_are_degraded_one_after_another():
    degradations, hq = Degradations([settings("real_world", shared=False)]), batch()
    low = degradations.low(hq, Draws(3, 1))
    generator = group_generator(Draws(3, 1))
    for index in range(4):
        torch.multinomial(torch.ones(1), 1, generator=generator)
        assert torch.equal(low[index : index + 1], RealWorldDegradation(4.0)(hq[index : index + 1], generator))


def test_the_small_image_comes_back_by_one_of_three_ways():
    degradations, hq = Degradations([settings("real_world")]), batch()
    modes: Counter[str] = Counter()
    for number in range(40):
        low, lq = degradations.low(hq, Draws(0, number)), degradations(hq, Draws(0, number))
        assert lq.shape == hq.shape
        assert torch.equal(lq, (lq * 255).round() / 255)
        ways = {
            mode: (F.interpolate(low, hq.shape[-2:], mode=mode).clamp(0, 1) * 255).round() / 255
            for mode in ("area", "bilinear", "bicubic")
        }
        (mode,) = [mode for mode, image in ways.items() if torch.equal(image, lq)]
        modes[mode] += 1
    assert set(modes) == {"area", "bilinear", "bicubic"} and min(modes.values()) > 5


def test_pillows_bicubic_is_what_the_nodes_do():
    from PIL import Image

    degradations, hq = Degradations([settings("camera")]), batch(1)
    low, lq = degradations.low(hq, Draws(0, 0)), degradations(hq, Draws(0, 0))
    pixels = (low[0] * 255).round().byte().permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC))
    assert np.array_equal((lq[0] * 255).round().byte().permute(1, 2, 0).numpy(), expected)


def test_a_mixture_draws_a_kind_for_every_photo():
    kinds = [settings("real_world", weight=1), settings("simple", weight=2), settings("camera", weight=1)]
    degradations = Degradations(kinds)
    counts = Counter(kind for number in range(300) for kind in degradations.draw_kinds(4, Draws(0, number)))
    assert [round(counts[kind] / 1200, 1) for kind in range(3)] == [0.2, 0.5, 0.2] or all(
        abs(counts[kind] / 1200 - share) < 0.05 for kind, share in enumerate((0.25, 0.5, 0.25))
    )


def test_kinds_of_a_mixture_are_what_each_is_alone():
    """Photos of the shared kind are one call; of the others, one call each, by generators of their kinds."""
    kinds = [settings("real_world"), settings("camera"), settings("simple", scales=[4], scale_weights=[1])]
    degradations, hq = Degradations(kinds), batch(8)
    low = degradations.low(hq, Draws(7, 2))
    draws = Draws(7, 2)
    chosen = degradations.draw_kinds(8, draws)
    assert set(chosen) == {0, 1, 2}
    for kind in range(3):
        generator = group_generator(draws)
        places = [place for place, drawn in enumerate(chosen) if drawn == kind]
        parts = [places] if kind == 0 else [[place] for place in places]
        for part in parts:
            degradation = draw_degradation(kinds[kind], generator)
            assert torch.equal(low[part], degradation(hq[part], generator))


def test_equal_draws_degrade_alike_and_others_differently():
    degradations, hq = Degradations([settings("real_world"), settings("camera"), settings("simple")]), batch()
    one = degradations(hq, Draws(0, 0))
    assert torch.equal(one, degradations(hq, Draws(0, 0)))
    assert not torch.equal(one, degradations(hq, Draws(0, 1)))
    assert not torch.equal(one, degradations(hq, Draws(1, 0)))


def test_small_images_of_different_sizes_are_no_batch():
    degradations = Degradations([settings("simple", scales=[2, 4], scale_weights=[1, 1])])
    with pytest.raises(ValueError, match="different scales"):
        degradations.low(batch(8), Draws(0, 0))
    assert degradations(batch(8), Draws(0, 0)).shape == batch(8).shape


def test_simple_and_camera_are_drawn_from_their_ranges():
    generator = torch.Generator().manual_seed(0)
    simple = [draw_degradation(settings("simple"), generator) for _ in range(600)]
    assert all(isinstance(each, SimpleDegradation) for each in simple)
    scales = Counter(each.scale for each in simple)
    assert all(
        abs(scales[scale] / 600 - share) < 0.07
        for scale, share in zip((1, 2, 3, 4), (0.1, 0.45, 0.1, 0.35), strict=True)
    )
    assert {each.jpeg_quality for each in simple} - {None} <= set(range(45, 96))
    assert abs(sum(each.jpeg_quality is None for each in simple) / 600 - 0.05) < 0.03
    assert abs(sum(each.blur_sigma > 0 for each in simple) / 600 - 0.25) < 0.07
    assert all(each.blur_sigma == 0 or 0.3 <= each.blur_sigma <= 1.2 for each in simple)
    assert all(each.noise_sigma * 255 <= 22 for each in simple)

    camera = [draw_degradation(settings("camera"), generator) for _ in range(400)]
    assert all(isinstance(each, CameraDegradation) for each in camera)
    assert all(0.8 <= sigma <= 3.2 for each in camera for sigma in each.sigma)
    assert abs(sum(each.sigma[0] == each.sigma[1] for each in camera) / 400 - 0.5) < 0.1
    assert all(0 <= each.rotation <= math.pi and 0 <= each.noise_sigma * 255 <= 3 for each in camera)
    qualities = {each.jpeg_quality for each in camera}
    assert None in qualities and qualities - {None} <= set(range(85, 101)) and {85, 100} <= qualities


def test_the_camera_is_a_gaussian_with_two_axes_before_the_reduction():
    """An impulse, in float64: the covariance of what the blur makes of it is the one that was asked for."""
    degradation = CameraDegradation(scale=1, sigma=(2.6, 1.1), rotation=0.5)
    kernel = degradation.kernel().double()
    offsets = torch.arange(kernel.shape[0], dtype=torch.float64) - kernel.shape[0] // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    covariance = torch.tensor([[(kernel * a * b).sum() for b in (x, y)] for a in (x, y)])
    turn = torch.tensor([[math.cos(0.5), -math.sin(0.5)], [math.sin(0.5), math.cos(0.5)]], dtype=torch.float64)
    expected = turn @ torch.diag(torch.tensor([2.6**2, 1.1**2], dtype=torch.float64)) @ turn.T
    assert torch.allclose(covariance, expected, rtol=0.02, atol=0.02)
    assert abs(float(kernel.sum()) - 1) < 1e-6

    hq = batch(1, 32, 32)
    padded = F.pad(hq.double(), (10,) * 4, mode="reflect")
    blurred = torch.zeros_like(hq, dtype=torch.float64)
    for row in range(21):
        for column in range(21):
            blurred += kernel[row, column] * padded[..., row : row + 32, column : column + 32]
    found = degradation(hq, torch.Generator().manual_seed(0))
    assert (found - blurred).abs().max() <= 0.5 / 255 + 1e-5


def test_a_wide_camera_blur_is_not_cut_off():
    assert CameraDegradation(sigma=(6.0, 2.0)).kernel().shape == (37, 37)
    with pytest.raises(ValueError, match="greater than 0"):
        CameraDegradation(sigma=(0.0, 1.0))
    with pytest.raises(ValueError, match="scale"):
        CameraDegradation(scale=0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "foggy"}, "foggy"),
        ({"kind": "camera", "sigma": [0.8, 0.2]}, "ends below"),
        ({"kind": "camera", "sigma": [0, 0.2]}, "greater than 0"),
        ({"kind": "camera", "scales": [2, 4]}, "2 scales and 1 scale_weights"),
        ({"kind": "simple", "quality": [0, 50]}, "greater than or equal to 1"),
        ({"kind": "simple", "scales": [0.5], "scale_weights": [1]}, "greater than or equal to 1"),
        ({"kind": "real_world", "first": {"kernel_sizes": [7, 8]}}, "holds 8"),
        ({"kind": "real_world", "second": {"blur": 1}}, "Extra inputs"),
        ({"kind": "real_world", "weight": 0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_work_are_errors(values, message):
    with pytest.raises(ValidationError, match=message):
        READ.validate_python(values)


def test_one_round_alone():
    data = settings("real_world", second=None)
    degradation = draw_degradation(data, torch.Generator().manual_seed(0))
    assert degradation == RealWorldDegradation(scale=4, rounds=(FIRST_ROUND,))


def test_a_part_of_a_round_keeps_the_other_numbers():
    data = settings("real_world", second={"gaussian": [2, 4]})
    rounds = draw_degradation(data, torch.Generator().manual_seed(0)).rounds
    assert rounds[0] == FIRST_ROUND
    assert rounds[1].gaussian_sigma == (2 / 255, 4 / 255)
    assert rounds[1].kernel == SECOND_ROUND.kernel and rounds[1].shrink == SECOND_ROUND.shrink
