"""Squares cut from photos: where they are, and cutting them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...models.image import BICUBIC
from .config import ResizeSettings
from .reading import PhotoError


@dataclass(frozen=True)
class Crop:
    """A square of a photo that was resized to `width` x `height`. All numbers are pixels."""

    width: int
    height: int
    left: int
    top: int
    side: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}+{self.left}+{self.top}:{self.side}"

    def __post_init__(self):
        inside = 0 <= self.left <= self.width - self.side and 0 <= self.top <= self.height - self.side
        if self.side < 1 or not inside:
            raise ValueError(f"the crop {self} is not inside its photo")

    def fits(self, size: tuple[int, int]) -> bool:
        """Whether it can be of a photo of (width, height): its own size, or one shrunk to the same proportions."""
        factor = max(self.width / size[0], self.height / size[1])
        return factor <= 1 and all(
            abs(length - factor * whole) < 1 for length, whole in zip((self.width, self.height), size, strict=True)
        )


def draw_crop(
    size: tuple[int, int], side: int, resize: ResizeSettings, enlarge: bool, rng: np.random.Generator
) -> Crop:
    """A random square of `side` pixels of a photo of `size` (width, height), perhaps shrunk before.

    Raises PhotoError for a photo that is smaller than the square, unless it may be enlarged.
    """
    factor = draw_factor(min(size), side, resize, rng)
    if min(size) < side:
        if not enlarge:
            raise PhotoError(f"it is {size[0]}x{size[1]} pixels, smaller than the crop of {side} (data.crop)")
        factor = side / min(size)
    width, height = (max(side, round(length * factor)) for length in size)
    left, top = (int(rng.integers(length - side + 1)) for length in (width, height))
    return Crop(width, height, left, top, side)


def draw_factor(shorter: int, side: int, resize: ResizeSettings, rng: np.random.Generator) -> float:
    """How much a photo of this shorter side is shrunk: to no less than the square, and never enlarged."""
    if rng.random() >= resize.chance:
        return 1.0
    if resize.factor is not None:
        low, high = resize.factor
        return min(1.0, max(side / shorter, math.exp(rng.uniform(math.log(low), math.log(high)))))
    return 1.0 if resize.short_side is None else min(1.0, max(side, resize.short_side) / shorter)


def central_crop(size: tuple[int, int], side: int, enlarge: bool = False) -> Crop:
    """The square in the middle of a photo. Raises PhotoError as draw_crop does."""
    if min(size) < side and not enlarge:
        raise PhotoError(f"it is {size[0]}x{size[1]} pixels, smaller than the crop of {side} (data.crop)")
    factor = max(1.0, side / min(size))
    width, height = (max(side, round(length * factor)) for length in size)
    return Crop(width, height, (width - side) // 2, (height - side) // 2, side)


def cut(photo: Image.Image, crop: Crop) -> np.ndarray:
    """The square as uint8 `[side, side, 3]`: the photo's own pixels, or Pillow's bicubic where it was resized.

    Only what lies around the square is resized, with the pixels beyond its border: as if the whole photo were.
    """
    left, top, right, bottom = crop.left, crop.top, crop.left + crop.side, crop.top + crop.side
    if (crop.width, crop.height) == photo.size:
        return np.array(photo.crop((left, top, right, bottom)))
    across, down = photo.width / crop.width, photo.height / crop.height
    box = (left * across, top * down, min(right * across, photo.width), min(bottom * down, photo.height))
    return np.array(photo.resize((crop.side, crop.side), BICUBIC, box=box))
