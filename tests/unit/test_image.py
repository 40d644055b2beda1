"""8-bit levels, resampling (the same as Pillow's, for any batch, channels and value range), borders and blur."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from realisr.models.image import (
    BICUBIC,
    LANCZOS,
    from_bytes,
    gaussian_blur,
    mirror_borders,
    reflect_indices,
    resize,
    to_bytes,
    to_levels,
    truncate_to_bytes,
    upscale,
)


def pillow(image: torch.Tensor, width: int, height: int, resample) -> np.ndarray:
    return np.array(Image.fromarray(to_bytes(image).numpy()).resize((width, height), resample))


@pytest.mark.parametrize("size", [(37, 50), (7, 5), (1, 1), (200, 3)])
@pytest.mark.parametrize("resample", [BICUBIC, LANCZOS])
def test_each_image_is_pillows(size, resample):
    images = torch.rand(2, 19, 23, 3)
    width, height = size
    resized = resize(images, width, height, resample)
    assert resized.shape == (2, height, width, 3)
    for image, result in zip(images, resized, strict=True):
        np.testing.assert_array_equal(to_bytes(result).numpy(), pillow(image, width, height, resample))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_every_channel_is_resized_alike(channels):
    images = torch.rand(1, 9, 8, channels)
    resized = upscale(images, 20, 30)
    for channel in range(channels):
        expected = pillow(images[0, ..., channel], 20, 30, BICUBIC)
        np.testing.assert_array_equal(to_bytes(resized[0, ..., channel]).numpy(), expected)


def test_an_image_of_that_size_is_left_alone():
    images = torch.rand(1, 6, 5, 3)
    assert upscale(images, 5, 6) is images


def test_values_outside_the_range_are_clamped():
    images = torch.tensor([-0.5, 1.5]).view(1, 1, 2, 1).repeat(1, 2, 1, 3)
    assert to_bytes(images).unique().tolist() == [0, 255]
    assert upscale(images, 8, 4).amax() == 1.0


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="cannot resize to 0x4: both sides must be at least 1 pixel"):
        upscale(torch.rand(1, 2, 2, 3), 0, 4)


def test_levels_survive_the_way_through_floats():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(levels)), levels)
    assert torch.equal(truncate_to_bytes(from_bytes(levels)), levels)
    assert truncate_to_bytes(torch.tensor(0.999)) == 254


def test_levels_as_floats_keep_their_precision():
    images = torch.linspace(-0.1, 1.1, 997, dtype=torch.float64)
    levels = to_levels(images)
    assert levels.dtype == torch.float64
    assert torch.equal(levels, to_bytes(images).double() / 255)


def test_gaussian_blur_keeps_the_mean_and_has_its_width():
    impulse = torch.zeros(1, 1, 61, 61)
    impulse[0, 0, 30, 30] = 1
    blurred = gaussian_blur(impulse, 2.0, 6)[0, 0]
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    offsets = torch.arange(61.0) - 30
    assert (blurred.sum(dim=0) * offsets**2).sum().item() == pytest.approx(4.0, rel=0.05)
    assert (blurred.sum(dim=1) * offsets**2).sum().item() == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize(("height", "width"), [(70, 50), (9, 70)])
def test_blur_is_torchvisions_and_that_of_strips(monkeypatch, height, width):
    """torchvision's takes no side as short as the radius: it is given the mirrored image."""
    from torchvision.transforms.v2.functional import gaussian_blur as expected

    images = torch.rand(2, 3, height, width)
    blurred = gaussian_blur(images, 4.0, 12)
    wide = expected(mirror_borders(images, 24), [25, 25], [4.0, 4.0])[..., 24:-24, 24:-24]
    torch.testing.assert_close(blurred, wide, atol=1e-5, rtol=0)
    monkeypatch.setattr("realisr.models.image.STRIP_ROWS", 16)
    torch.testing.assert_close(gaussian_blur(images, 4.0, 12), blurred, atol=1e-6, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 5, 21, 60])
def test_border_is_mirrored_without_its_edge(length):
    padded = reflect_indices(length, 20)
    if length > 20:
        expected = torch.nn.functional.pad(torch.arange(length).float()[None, None], (20, 20), mode="reflect")[0, 0]
        assert torch.equal(padded.float(), expected)
    steps = padded.diff().abs()
    assert padded.min() == 0 and padded.max() == length - 1
    assert (steps == (0 if length == 1 else 1)).all()
