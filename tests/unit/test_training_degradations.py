"""The mixture of degradations that training draws from, and the cutting of photos into tiles."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve

import cut_photos
from realisr.models.degradation.real_world import RealWorldDegradation
from realisr.models.degradation.simple import SimpleDegradation
from realisr.training.degradations import CameraDegradation, CameraRange, DegradationMixture


def drawn(weights: tuple[float, float, float], count: int = 300):
    mixture, rng = DegradationMixture(weights), np.random.default_rng(0)
    return [mixture.draw(rng) for _ in range(count)]


def test_kinds_come_in_their_proportions():
    found = [type(one) for one in drawn((1.0, 2.0, 1.0), 1000)]
    expected = {CameraDegradation: 250, SimpleDegradation: 500, RealWorldDegradation: 250}
    for kind, count in expected.items():
        assert abs(found.count(kind) - count) < 4 * math.sqrt(250), kind


def test_a_weight_of_zero_leaves_a_kind_out():
    assert {type(one) for one in drawn((0.0, 1.0, 0.0))} == {SimpleDegradation}


def test_camera_blur_grows_with_the_scale():
    draws = drawn((1.0, 0.0, 0.0), 2000)
    for scale in (2, 3, 4):
        sigmas = [sigma for one in draws if one.scale == scale for sigma in one.sigma]
        assert min(sigmas) >= 0.2 * scale and max(sigmas) <= 0.8 * scale
        assert min(sigmas) < 0.25 * scale and max(sigmas) > 0.75 * scale
    round_ones = [one.sigma[0] == one.sigma[1] for one in draws]
    assert abs(np.mean(round_ones) - CameraRange().round_chance) < 0.05
    assert {one.jpeg_quality is None for one in draws} == {True, False}
    assert min(one.jpeg_quality for one in draws if one.jpeg_quality) >= 85


def test_camera_blur_is_the_gaussian_of_its_axes():
    """Against a float64 convolution; no noise, no JPEG, no shrinking, so 8-bit rounding is all that differs."""
    image = torch.rand(1, 3, 40, 44, generator=torch.Generator().manual_seed(0))
    sigma, angle = (2.4, 0.9), 0.7
    y, x = np.mgrid[-10:11, -10:11].astype(float)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kernel = np.exp(-0.5 * ((along / sigma[0]) ** 2 + (across / sigma[1]) ** 2))
    kernel /= kernel.sum()
    result = CameraDegradation(1, sigma, angle)(image, torch.Generator())[0].double().numpy()
    for channel in range(3):
        expected = convolve(image[0, channel].double().numpy(), kernel, mode="mirror")
        assert np.abs(result[channel] - expected).max() <= 0.51 / 255


@pytest.fixture
def photo(tmp_path):
    """Half texture, half plain."""
    pixels = np.full((200, 400, 3), 128, np.uint8)
    pixels[:, :200] = np.random.default_rng(0).integers(0, 255, (200, 200, 3))
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_photos_are_cut_into_tiles_without_the_plain_ones(photo, tmp_path, monkeypatch):
    out = tmp_path / "tiles"
    monkeypatch.setattr(sys, "argv", ["cut", str(photo), "--out", str(out), "--tile", "50", "--shrink", "2"])
    cut_photos.main()
    # 200 x 100 after shrinking: 8 tiles, 4 of them texture; 100 x 50 after another: 2, one of them texture.
    written = [np.array(Image.open(path)) for path in sorted(out.iterdir())]
    assert len(written) == 5
    assert all(tile.shape == (50, 50, 3) and cut_photos.edge_strength(tile) > 6 for tile in written)


def test_small_photos_give_no_tile(photo, tmp_path, monkeypatch):
    """Enlarging them would teach blur."""
    out = tmp_path / "tiles"
    monkeypatch.setattr(sys, "argv", ["cut", str(photo), "--out", str(out), "--tile", "101"])
    cut_photos.main()
    assert list(out.iterdir()) == []
