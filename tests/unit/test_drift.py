"""Drift of meaning: what it is by definition, and that it tells a lie from a restoration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from realisr.models.drift import (
    EDGE_FLOOR,
    LOW_FLOOR,
    Drift,
    edge_difference,
    kept_candidates,
    low_difference,
    measure_drift,
    told_drifts,
    vetoed,
)


def scene(seed: int = 0, side: int = 128) -> torch.Tensor:
    """Blobs of many sizes `[side, side, 3]`."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        F.interpolate(torch.rand(1, 3, cells, cells, generator=generator), (side, side), mode="bicubic")
        for cells in (4, 8, 16)
    ]
    return (sum(layers)[0] / 3).clamp(0, 1).movedim(0, -1)


def small(image: torch.Tensor, by: int = 2) -> torch.Tensor:
    return F.avg_pool2d(image.movedim(-1, 0)[None], by)[0].movedim(0, -1)


def test_the_same_picture_does_not_drift():
    image = scene()
    assert measure_drift(image, image) == Drift(0.0, 0.0)
    assert measure_drift(image, small(image)).value < 0.2


def test_a_tint_and_noise_are_no_drift():
    image = scene() * 0.8 + 0.1
    tinted = image + torch.tensor([0.08, 0.0, -0.08])
    assert measure_drift(tinted, image).value < 1e-4
    noisy = small(image) + 0.04 * torch.randn(64, 64, 3, generator=torch.Generator().manual_seed(1))
    assert measure_drift(image, noisy).value < 0.6


def test_what_is_pasted_drifts():
    image, other = scene(), scene(seed=1)
    changed = image.clone()
    changed[40:72, 60:92] = other[40:72, 60:92]
    faithful, lie = measure_drift(image, small(image)), measure_drift(changed, small(image))
    assert lie.low > 2 * faithful.low and lie.edges > 2 * faithful.edges
    assert lie.value > 0.7


def test_windows_are_the_definition():
    """Against a plain loop in float64."""
    generator = torch.Generator().manual_seed(3)
    pair = torch.rand(2, 3, 24, 32, generator=generator) * 255
    low, edges = low_difference(pair, 8).double().numpy(), edge_difference(pair, 8).double().numpy()
    result, model = pair.double().numpy()
    weights = np.array([0.299, 0.587, 0.114])[:, None, None]

    def slopes(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grey = np.pad((image * weights).sum(0), 1, mode="edge")
        return (grey[2:, 1:-1] - grey[:-2, 1:-1]) / 2, (grey[1:-1, 2:] - grey[1:-1, :-2]) / 2

    slope, model_slope = slopes(result), slopes(model)
    assert low.shape == edges.shape == (5, 7)
    for row in range(5):
        for column in range(7):
            place = (slice(row * 4, row * 4 + 8), slice(column * 4, column * 4 + 8))
            difference = np.mean((result - model)[(slice(None), *place)] ** 2)
            own = np.mean([np.var(channel[place]) for channel in model])
            assert low[row, column] == pytest.approx(math.sqrt(difference / (own + LOW_FLOOR**2)), rel=1e-4)
            apart = np.mean([np.mean((a[place] - b[place]) ** 2) for a, b in zip(slope, model_slope, strict=True)])
            both = np.mean(
                [np.mean(a[place] ** 2) + np.mean(b[place] ** 2) for a, b in zip(slope, model_slope, strict=True)]
            )
            assert edges[row, column] == pytest.approx(math.sqrt(apart / (both + EDGE_FLOOR**2)), rel=1e-4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 200), (9, 9)])
def test_any_size(height, width):
    lq = torch.rand(height, width, 3)
    found = measure_drift(torch.rand(4 * height, 4 * width, 3), lq)
    assert math.isfinite(found.value)


def test_what_is_no_number_drifts_without_bound():
    image = scene()
    image[3, 3] = torch.nan
    assert measure_drift(image, scene()).value == math.inf


def test_vetoes():
    assert vetoed([0.2, 0.9, math.inf], 0.5) == [False, True, True]
    assert vetoed([0.2, 0.9], 0.0) == [False, False]
    assert vetoed([0.8, 0.7, math.nan], 0.5) == [True, False, True], "never all"
    assert vetoed([], 0.5) == []


def test_candidates_of_a_loop():
    """Listed round by round; of several images each keeps as many as the others."""
    assert kept_candidates([0.2, 0.9, 0.3], 1, 0.5) == [0, 2]
    assert kept_candidates([0.2, 0.6, 0.9, 0.1, 0.3, 0.9], 2, 0.5) == [0, 3, 0, 3, 4, 3]
    assert told_drifts([0.2, 0.9], 1, 0.5) == ["Drift: 0.20", "Drift: 0.90, above 0.5: passed over"]
