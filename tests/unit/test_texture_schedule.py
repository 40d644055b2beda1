"""DreamSR's texture schedule."""

from __future__ import annotations

import math

import pytest
import torch

from realisr.models.dreamsr.schedule import texture_sigmas


def test_the_papers_schedule_is_uniform_from_eight_tenths():
    sigmas = texture_sigmas()
    assert sigmas.dtype == torch.float32
    assert sigmas.tolist() == pytest.approx([0.8 * (1 - k / 16) for k in range(17)], abs=1e-7)
    assert sigmas[-1].item() == 0


@pytest.mark.parametrize("shift", [0.5, 1.0, math.exp(0.5), math.exp(1.15)])
@pytest.mark.parametrize("start", [0.3, 0.8, 1.0])
def test_a_shift_moves_the_steps_and_not_the_ends(start: float, shift: float):
    sigmas = texture_sigmas(9, start, shift).double()
    assert sigmas[0].item() == pytest.approx(start, abs=1e-7)
    assert sigmas[-1].item() == 0
    assert (sigmas.diff() < 0).all()
    # Undoing the shift gives equal steps again.
    steps = (sigmas / (shift - (shift - 1) * sigmas)).diff()
    assert torch.allclose(steps, steps.mean().expand_as(steps), atol=1e-6)


def test_more_shift_means_more_steps_at_high_noise():
    assert (texture_sigmas(8, 0.8, 3.0)[1:-1] > texture_sigmas(8, 0.8, 1.0)[1:-1]).all()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"start": 0.0}, {"start": 1.5}, {"shift": 0.0}])
def test_impossible_schedules_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match="at least 1 step"):
        texture_sigmas(**wrong)
