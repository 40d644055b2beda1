"""Pictures as they are sent to a model."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from realisr.services.vlm.pictures import as_rgb, fit, to_pil


def test_transparent_parts_become_white():
    red = torch.tensor([1.0, 0.0, 0.0])
    image = torch.cat([red.expand(2, 3, 3), torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1).expand(2, 3, 1)], dim=-1)
    assert as_rgb(image)[0].tolist() == [[1, 1, 1], [1, 0.5, 0.5], [1, 0, 0]]


def test_grey_becomes_rgb_and_values_are_clamped():
    assert as_rgb(torch.tensor([[[2.0], [-1.0]]])).tolist() == [[[1, 1, 1], [0, 0, 0]]]


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [((60, 40), 64, (60, 40)), ((600, 300), 64, (64, 32)), ((3, 900), 64, (1, 64)), ((64, 64), 64, (64, 64))],
)
def test_only_larger_pictures_are_shrunk(size, limit, expected):
    width, height = size
    assert to_pil(torch.rand(height, width, 3), limit).size == expected


def test_pixels_are_kept():
    image = torch.randint(0, 256, (5, 7, 3)).float() / 255
    assert torch.equal(fit(image, 64), image)
    assert isinstance(to_pil(image, 64), Image.Image)


def test_what_is_no_image():
    with pytest.raises(ValueError, match=r"\[2, 2, 2\]"):
        as_rgb(torch.rand(2, 2, 2))
    with pytest.raises(ValueError, match="not numbers"):
        as_rgb(torch.full((2, 2, 3), torch.nan))
