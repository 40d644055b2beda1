"""A picture of what a tile check found."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..image import from_bytes, to_bytes
from ..tiles.preview import number_at
from .cells import tile_cells
from .check import TileCheck

BAD = (255, 48, 48)


def draw_check(check: TileCheck, image: Tensor) -> Tensor:
    """`image` `[H, W, 3]` with the cells of bad tiles outlined and numbered, at its own size in 0..1.

    A good image is returned as it is. Values that are not numbers are drawn black.
    """
    if not check.bad:
        return image
    height, width = image.shape[:2]
    canvas = Image.fromarray(to_bytes(image.nan_to_num(0)).cpu().numpy())
    brush = ImageDraw.Draw(canvas)
    cells = tile_cells(check.grid)
    line = max(2, min(height, width) // 256)
    for index in check.bad:
        cell = cells[index]
        right, bottom = min(cell.left + cell.width, width) - 1, min(cell.top + cell.height, height) - 1
        if right < cell.left or bottom < cell.top:
            continue
        brush.rectangle((cell.left, cell.top, right, bottom), outline=BAD, width=line)
        middle = ((cell.left + right) / 2, (cell.top + bottom) / 2)
        font = ImageFont.load_default(size=max(8.0, min(min(cell.width, cell.height) / 5, 48.0)))
        number_at(brush, middle, str(index + 1), font)
    return from_bytes(torch.from_numpy(np.array(canvas))).to(image)
