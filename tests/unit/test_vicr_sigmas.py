"""The noise levels: ends, shift, denoise."""

from __future__ import annotations

import math

import pytest
import torch

from realisr.models.vicr.sigmas import dynamic_shift, flow_match_sigmas


@pytest.mark.parametrize("tokens", [1, 256, 1024, 4096, 32768])
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_from_one_to_zero(tokens, steps):
    sigmas = flow_match_sigmas(tokens, steps)
    assert sigmas.dtype == torch.float32 and len(sigmas) == steps + 1
    assert sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


def test_shift_is_linear_and_not_clamped():
    assert dynamic_shift(256) == 0.5 and dynamic_shift(4096) == pytest.approx(1.15)
    assert dynamic_shift(8192) == pytest.approx(0.5 + 0.65 * (8192 - 256) / 3840)
    assert dynamic_shift(256, 0.1, 0.9) == pytest.approx(0.1) and dynamic_shift(4096, 0.1, 0.9) == pytest.approx(0.9)


def test_one_level_by_hand():
    """Second of four levels, linear 0.75, at 256 tokens."""
    expected = math.exp(0.5) / (math.exp(0.5) + 1 / 0.75 - 1)
    assert flow_match_sigmas(256, 4)[1].item() == pytest.approx(expected, abs=1e-7)


def test_no_shift_is_linear():
    torch.testing.assert_close(flow_match_sigmas(256, 5, base_shift=0.0), torch.linspace(1, 0, 6))


def test_denoise_takes_the_end_of_a_longer_schedule():
    whole = flow_match_sigmas(1024, 20)
    assert torch.equal(flow_match_sigmas(1024, 10, denoise=0.5), whole[10:])
    assert torch.equal(flow_match_sigmas(1024, 20, denoise=1.0), whole)
    assert len(flow_match_sigmas(1024, 10, denoise=0.0)) == 0


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"steps": 0}, {"denoise": 1.5}, {"denoise": -0.1}])
def test_no_such_schedule(wrong):
    with pytest.raises(ValueError, match="no schedule for"):
        flow_match_sigmas(**({"tokens": 256, "steps": 4} | wrong))
