"""A picture of a tile grid."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..image import from_bytes, to_bytes
from .layout import TileLayout

COLORS = ((255, 99, 71), (64, 160, 255), (80, 200, 120), (250, 200, 60))
"""Of tile borders, so that neighbours differ in both directions."""


def draw_tiles(layout: TileLayout, image: Tensor | None = None, longest: int = 1536) -> Tensor:
    """The tiles with their numbers, `[1, h, w, 3]` in 0..1, over the first of `image` `[B, H, W, C]` or over grey.

    Numbers count from 1, row by row. longest: the longer side in pixels, at most.
    """
    height, width = layout.image_size
    scale = min(1.0, longest / max(height, width))
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    if image is None:
        canvas = Image.new("RGB", size, (72, 72, 72))
    else:
        pixels = to_bytes(image[0, :height, :width, :3]).cpu().numpy()
        canvas = Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
    brush = ImageDraw.Draw(canvas)
    columns = len(layout.grid.columns)
    for index, box in enumerate(layout.pixel_boxes):
        row, column = divmod(index, columns)
        color = COLORS[(row % 2) * 2 + column % 2]
        left, top = box.left * scale, box.top * scale
        right, bottom = (box.left + box.width) * scale - 1, (box.top + box.height) * scale - 1
        brush.rectangle((left, top, max(right, left), max(bottom, top)), outline=color, width=2)
        number_at(brush, ((left + right) / 2, (top + bottom) / 2), str(index + 1), min(box.width, box.height) * scale)
    return from_bytes(torch.from_numpy(np.array(canvas)))[None]


def number_at(brush: ImageDraw.ImageDraw, middle: tuple[float, float], text: str, side: float) -> None:
    """White on black, so that it can be read over any picture."""
    font = ImageFont.load_default(size=max(8.0, min(side / 5, 48.0)))
    brush.text(middle, text, fill="white", font=font, anchor="mm", stroke_width=2, stroke_fill="black")
