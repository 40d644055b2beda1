"""The bundled model does what it is shipped for: it beats bicubic on photos it never saw."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from _pack import ROOT
from realisr.training.data.builtin import EVALUATION_PHOTOS, TRAINING_PHOTOS, VALIDATION_PHOTOS

LARGEST_FILE = 20_000_000
LEAST_GAIN = {"simple x2": 1.2, "camera x4": 0.8}
"""In dB, on the two photos below."""


@pytest.fixture
def nano_quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("nano_quality", ROOT / "benchmarks" / "nano_quality.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_the_file_fits_the_repository(nano_quality):
    assert nano_quality.WEIGHTS.stat().st_size <= LARGEST_FILE


def test_evaluation_photos_are_not_trained_on():
    assert not set(EVALUATION_PHOTOS) & set(TRAINING_PHOTOS + VALIDATION_PHOTOS)
    assert not set(VALIDATION_PHOTOS) & set(TRAINING_PHOTOS)


def test_one_step_beats_bicubic(nano_quality):
    """Two whole photos of the benchmark; all six take a minute."""
    names = ("chelsea.png", "flower.jpg")
    photos = {name: nano_quality.central(nano_quality.held_out_photos()[name], 0) for name in names}
    results = nano_quality.evaluate(nano_quality.Nano.load(), photos, ["simple x2", "camera x4"], seed=0)
    for result in results:
        assert result.psnr_gain >= LEAST_GAIN[result.test], result
        assert result.ssim_gain > 0, result
