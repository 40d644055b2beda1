"""Bringing a picture to a shape that PURE reads: one of a list of crops of about equal area (arXiv 2503.11073).

The crop is cut at a random place, drawn for each picture by itself as in the authors' preparation: a low-quality
picture and its clean one lie on each other only where both have a crop's size already. `tokens.py` counts others.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...models.pure.vocabulary import PATCH_PIXELS
from ..engine.draws import Draws

MOST_ELONGATED = 4
"""Largest ratio of a crop's sides."""


@cache
def crop_sizes(side: int) -> tuple[tuple[int, int], ...]:
    """(width, height) of every crop: sides in multiples of 32, the area as near to side² as the width allows."""
    patches = (side // PATCH_PIXELS) ** 2
    sizes = []
    for width in range(patches, 0, -1):
        # From the height that the next wider crop has: the authors' list is such a walk.
        first = patches // (width + 1) if width < patches else 1
        sizes += [(width, height) for height in range(first, patches // width + 1)]
    kept = [size for size in sizes if max(size) <= MOST_ELONGATED * min(size)]
    return tuple((PATCH_PIXELS * width, PATCH_PIXELS * height) for width, height in kept)


def chosen_size(width: int, height: int, side: int) -> tuple[int, int]:
    """The crop (width, height) that keeps most of a picture; of equals, the widest."""

    def kept(size: tuple[int, int]) -> float:
        ratios = (size[0] / width, size[1] / height)
        return min(ratios) / max(ratios)

    return max(crop_sizes(side), key=lambda size: (kept(size), size))


def cropped(picture: Image.Image, side: int, draws: Draws) -> Tensor:
    """A picture's crop, 8-bit RGB `[H, W, 3]`: halved by box filtering while twice as large, then bicubic, then cut.

    draws: of the place, its left side first. Transparent pictures are laid over white.
    """
    width, height = chosen_size(*picture.size, side)
    while picture.width >= 2 * width and picture.height >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(width / picture.width, height / picture.height)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = draws.choice(picture.width - width + 1), draws.choice(picture.height - height + 1)
    return rgb(picture.crop((left, top, left + width, top + height)))


def rgb(picture: Image.Image) -> Tensor:
    """8-bit RGB `[H, W, 3]`; what shines through is white."""
    if picture.mode != "RGB":
        picture = picture.convert("RGBA")
        colours = np.asarray(picture)
        if (colours[..., 3] < 255).any():
            alpha = colours[..., 3:] / 255
            blended = (1 - alpha) * 255 + alpha * colours[..., :3]
            return torch.from_numpy(blended.astype(np.uint8))
        picture = picture.convert("RGB")
    return torch.from_numpy(np.array(picture))


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height), from the file's head. Raises OSError for a file that is absent or no picture."""
    with Image.open(path) as picture:
        return picture.size


def read_crop(path: Path, side: int, draws: Draws) -> Tensor:
    """The crop of a file, 8-bit RGB `[H, W, 3]`. Raises OSError for a file that is absent or damaged."""
    with Image.open(path) as picture:
        picture.load()
        return cropped(picture, side, draws)
