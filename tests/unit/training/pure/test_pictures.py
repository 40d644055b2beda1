"""Crops: the authors' list of sizes, their choice, their places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from oracles import pure_crop
from parity import golden, pure_golden
from realisr.training.engine.draws import Draws
from realisr.training.pure.pictures import chosen_size, crop_sizes, cropped


class Recorded:
    """Draws that give back what the authors' code drew."""

    def __init__(self, calls):
        self.calls = iter(calls)

    def choice(self, count: int) -> int:
        low, high, value = next(self.calls)
        assert (low, high) == (0, count - 1)
        return value


@pytest.mark.parametrize("side", [64, 96, 256, 512])
def test_crop_sizes_are_the_authors(side):
    assert list(crop_sizes(side)) == pure_crop.crop_sizes(side)
    generator = torch.Generator().manual_seed(side)
    for width, height in torch.randint(20, 3000, (300, 2), generator=generator).tolist():
        assert chosen_size(width, height, side) == pure_crop.choose_crop(width, height, side)


def test_at_512_pixels_there_are_49_sizes_and_a_square_keeps_its_shape():
    assert len(crop_sizes(512)) == 49
    assert crop_sizes(512)[0] == (1024, 256) and crop_sizes(512)[-1] == (256, 1024)
    assert chosen_size(700, 700, 512) == (512, 512)


@pytest.mark.parametrize("case", pure_golden.cases("lq_tokens"))
def test_crops_of_the_authors_code(case):
    entry = case.parameters
    image = Image.fromarray(case["in.image_u8"].numpy())
    crop = cropped(image, entry["target_size"], Recorded(entry["randint_calls"]))
    golden.assert_levels(crop, case["mid.cropped_u8"], 1, 0.99, "crop")


def test_a_picture_of_a_crops_size_is_kept_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(cropped(Image.fromarray(pixels), 64, Draws(0, 0)).numpy(), pixels)
