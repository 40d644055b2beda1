"""Bringing an image to a size PURE was trained on, as the reference prepares training data.

Restoration stretches any input to 512 x 512 first, so no graph crops. Images are 8-bit `[H, W, C]`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from realisr.models.image import BICUBIC
from realisr.models.pure.vocabulary import PATCH_PIXELS

TARGET_SIZE = 512
MAX_ASPECT = 4.0

Randint = Callable[[int, int], int]
"""randint(a, b): a whole number from a to b, both included."""


def crop_sizes(target: int = TARGET_SIZE) -> list[tuple[int, int]]:
    """Every (width, height) of at most the target's area, sides in multiples of 32, aspect ratio 1/4 to 4."""
    patches = (target // PATCH_PIXELS) ** 2
    width, height, sizes = patches, 1, []
    while width > 0:
        if max(width, height) / min(width, height) <= MAX_ASPECT:
            sizes.append((width * PATCH_PIXELS, height * PATCH_PIXELS))
        if (height + 1) * width <= patches:
            height += 1
        else:
            width -= 1
    return sizes


def choose_crop(width: int, height: int, target: int = TARGET_SIZE) -> tuple[int, int]:
    """The crop size that loses least of an image; of equals, the widest."""

    def score(size: tuple[int, int]) -> float:
        ratios = size[0] / width, size[1] / height
        return min(ratios) / max(ratios)

    return max((score(size), size) for size in crop_sizes(target))[1]


def crop(image: Tensor, size: tuple[int, int], randint: Randint | None = None) -> Tensor:
    """Scale 8-bit `[H, W, C]` until it just covers `size` (width, height), then cut that out at a random place.

    randint: draws the left, then the top offset; by default from a generator seeded with 0.
    """
    draw = randint or random.Random(0).randint
    width, height = size
    picture = to_picture(image)
    while picture.width >= 2 * width and picture.height >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(width / picture.width, height / picture.height)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), BICUBIC)
    left = draw(0, picture.width - width)
    top = draw(0, picture.height - height)
    return torch.from_numpy(np.array(picture.crop((left, top, left + width, top + height))))


def to_picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.numpy())


def to_rgb(image: Tensor) -> Tensor:
    """8-bit `[H, W, 1, 3 or 4]` -> RGB; transparent pixels are blended over white."""
    channels = image.shape[-1]
    if channels == 3:
        return image
    if channels == 1:
        return image.expand(-1, -1, 3)
    alpha = image[..., 3:].double() / 255
    if (alpha == 1).all():
        return image[..., :3]
    return ((1 - alpha) * 255 + alpha * image[..., :3].double()).to(torch.uint8)
