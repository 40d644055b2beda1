"""What a mask says of an image's transparency, for every whole-method node alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor


def transparent(image: Tensor, mask: Any) -> Tensor:
    from realisr.host.images import with_transparency

    return with_transparency(image, mask, "Node: ")


def picture(batch: int = 1, channels: int = 3) -> Tensor:
    return torch.rand(batch, 6, 9, channels)


@pytest.mark.parametrize("channels", [3, 4])
def test_no_mask_and_an_opaque_one_of_any_size_change_nothing(host, channels):
    image = picture(2, channels)
    for mask in (None, torch.zeros(1, 64, 64), torch.zeros(6, 9), torch.zeros(5, 6, 9)):
        assert transparent(image, mask) is image


def test_every_level_of_alpha_comes_back(host):
    """As Load Image takes it apart, 1 - alpha / 255, and Save Image puts it together, rounding down."""
    from realisr.models.image import truncate_to_bytes

    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    image = torch.rand(1, 16, 16, 3)
    result = transparent(image, 1 - levels.float() / 255)
    assert torch.equal(truncate_to_bytes(result[..., 3]), levels)
    assert torch.equal(result[..., :3], image)


def test_one_mask_serves_all_images_or_each_has_its_own(host):
    images, masks = picture(2), torch.rand(2, 6, 9)
    shared = transparent(images, masks[0])
    assert torch.equal(shared, transparent(images, masks[:1]))
    assert torch.equal(shared[0, ..., 3], shared[1, ..., 3])
    own = transparent(images, masks)
    for index in range(2):
        assert torch.equal(own[index], transparent(images[index : index + 1], masks[index])[0])
    half = transparent(images, torch.stack([torch.zeros(6, 9), masks[1]]))
    assert half[0, ..., 3].min() == 1 and half[1, ..., 3].min() < 1, "an opaque image among transparent ones"


def test_what_is_transparent_in_the_images_own_alpha_stays_so(host):
    image, mask = picture(channels=4), torch.zeros(1, 6, 9)
    image[..., 3], image[0, 0, 0, 3], mask[0, 0, 1] = 1, 0, 1
    alpha = transparent(image, mask)[0, 0, :, 3]
    assert alpha.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 5, 9), r"Node: The mask is 9x5, the image 9x6\. Take image and mask from the same Load Image"),
        (torch.ones(3, 6, 9), r"Node: Got 3 masks for 2 images\. Give one mask for each image, or one for all"),
        (torch.full((6, 9), torch.nan), r"Node: The mask holds values that are not numbers"),
        (torch.ones(6), r"Node: Expected a mask \[batch, height, width\], got \[6\]"),
        ("mask", r"Node: Expected a mask \[batch, height, width\], got str"),
    ],
)
def test_masks_that_cannot_be_used_are_refused_in_words(host, mask, message):
    with pytest.raises(ValueError, match=message):
        transparent(picture(2), mask)
