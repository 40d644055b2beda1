"""Resampling: the same as Pillow's, for any batch, channels and value range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from realisr.models import image as resize


def pillow(image: torch.Tensor, width: int, height: int, resample) -> np.ndarray:
    return np.array(Image.fromarray(resize.to_bytes(image).numpy()).resize((width, height), resample))


@pytest.mark.parametrize("size", [(37, 50), (7, 5), (1, 1), (200, 3)])
@pytest.mark.parametrize("resample", [resize.BICUBIC, resize.LANCZOS])
def test_each_image_is_pillows(size, resample):
    images = torch.rand(2, 19, 23, 3)
    width, height = size
    resized = resize.resize(images, width, height, resample)
    assert resized.shape == (2, height, width, 3)
    for image, result in zip(images, resized, strict=True):
        np.testing.assert_array_equal(resize.to_bytes(result).numpy(), pillow(image, width, height, resample))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_every_channel_is_resized_alike(channels):
    images = torch.rand(1, 9, 8, channels)
    resized = resize.upscale(images, 20, 30)
    for channel in range(channels):
        expected = pillow(images[0, ..., channel], 20, 30, resize.BICUBIC)
        np.testing.assert_array_equal(resize.to_bytes(resized[0, ..., channel]).numpy(), expected)


def test_an_image_of_that_size_is_left_alone():
    images = torch.rand(1, 6, 5, 3)
    assert resize.upscale(images, 5, 6) is images


def test_values_outside_the_range_are_clamped():
    images = torch.tensor([-0.5, 1.5]).view(1, 1, 2, 1).repeat(1, 2, 1, 3)
    assert resize.to_bytes(images).unique().tolist() == [0, 255]
    assert resize.upscale(images, 8, 4).amax() == 1.0


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="cannot resize to 0x4: both sides must be at least 1 pixel"):
        resize.upscale(torch.rand(1, 2, 2, 3), 0, 4)


def test_levels_survive_the_way_through_floats():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(resize.to_bytes(resize.from_bytes(levels)), levels)
    assert torch.equal(resize.truncate_to_bytes(resize.from_bytes(levels)), levels)
    assert resize.truncate_to_bytes(torch.tensor(0.999)) == 254
