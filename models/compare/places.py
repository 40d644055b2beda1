"""Which places of a picture a comparison enlarges: those a person names, or those where the results differ most."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..tile_check.measures import luma

Place = tuple[float, float]
"""Centre of a crop as fractions (x, y) of the picture's width and height, 0 to 1."""


def parse_places(text: str) -> list[Place]:
    """Places as a person writes them: "50 40; 12.5 80", x and y in percent, separated by semicolons or lines.

    Raises ValueError for anything else.
    """
    places = []
    for part in filter(str.strip, text.replace("\n", ";").split(";")):
        words = part.replace(",", " ").split()
        try:
            x, y = (float(word) for word in words)
        except ValueError:
            x = y = math.nan
        if not (0 <= x <= 100 and 0 <= y <= 100):
            raise ValueError(f"'{part.strip()[:40]}' is no place. Write x and y in percent, such as 50 40; 12 80.")
        places.append((x / 100, y / 100))
    return places


def crop_box(width: int, height: int, side: int, place: Place) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of a square of this side around a place, moved inside the picture.

    A picture smaller than the side gives its own smaller side.
    """
    side = min(side, width, height)
    left = min(max(round(place[0] * width - side / 2), 0), width - side)
    top = min(max(round(place[1] * height - side / 2), 0), height - side)
    return left, top, left + side, top + side


def most_different(images: Sequence[Tensor], side: int, count: int) -> list[Place]:
    """Centres of the squares in which images of one size differ most, the worst first; they do not overlap.

    images: at least two, `[H, W, 3]` in 0..1. side: of the squares in pixels. The measure of a square is the mean over
    its pixels of the variance of luma over the images: a difference that only one image has counts as well. Fewer than
    `count` come back where no more squares fit, and none of a place where all images agree.
    """
    if len(images) < 2 or count < 1:
        return []
    height, width = images[0].shape[:2]
    side = min(side, width, height)
    total, squares = torch.zeros(height, width, dtype=torch.float64), torch.zeros(height, width, dtype=torch.float64)
    for image in images:
        grey = luma(image.cpu().float().movedim(-1, 0))[0].double()
        total += grey
        squares += grey.square()
    mean = total / len(images)
    scores = box_sums((squares / len(images) - mean.square()).clamp_min_(0), side)
    floor = NOISE_FLOOR * side * side
    places: list[Place] = []
    while len(places) < count:
        best = int(scores.argmax())
        top, left = divmod(best, scores.shape[1])
        if scores[top, left] <= floor:
            break
        places.append(((left + side / 2) / width, (top + side / 2) / height))
        scores[max(0, top - side + 1) : top + side, max(0, left - side + 1) : left + side] = -1
    return places


NOISE_FLOOR = (0.25 / 255) ** 2
"""Variance of luma below which pixels are alike: a quarter of an 8-bit level."""


def box_sums(values: Tensor, side: int) -> Tensor:
    """Sums `[H - side + 1, W - side + 1]` over all squares of a map `[H, W]`."""
    sums = torch.nn.functional.pad(values.cumsum(0).cumsum(1), (1, 0, 1, 0))
    return sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
