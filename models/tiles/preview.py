"""A picture of a tile grid."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..image import from_bytes, to_bytes
from .grid import Box, wrapped_axes
from .layout import TileLayout

COLORS = ((255, 99, 71), (64, 150, 255), (70, 190, 110), (245, 190, 40))
"""Of tiles, so that neighbours differ in both directions, and across a corner too."""

TINT = 0.38
"""Of a tile's colour, over its own part: up to the middle of what it shares with its neighbours."""

SHARED = 0.62
"""Brightness of what tiles share."""

NUMBER_SIDE, NUMBER_LIMIT = 0.6, 200.0
"""Of the shorter side of a tile's own part, and in pixels."""

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def draw_tiles(layout: TileLayout, image: Tensor | None = None, longest: int = 1536) -> Tensor:
    """The tiles with their numbers, `[1, h, w, 3]` in 0..1, over the first of `image` `[B, H, W, C]` or over grey.

    Each tile's own part has a colour that its neighbours have not, and a number in its middle, counted from 1 row by
    row; what tiles share is darker. The first tile's whole extent is outlined. longest: the longer side in pixels, at
    most.
    """
    height, width = layout.image_size
    scale = min(1.0, longest / max(height, width))
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    if image is None:
        canvas = Image.new("RGB", size, (96, 96, 96))
    else:
        pixels = to_bytes(image[0, :height, :width, :3]).cpu().numpy()
        canvas = Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
    parts = own_parts(layout, scale)
    shaded = shade(np.array(canvas), layout, parts, scale)
    canvas = Image.fromarray(shaded)
    brush = ImageDraw.Draw(canvas)
    line = max(round(max(size) / 600), 1)
    for left, top, right, bottom in (copy for part in parts for copy in copies(part, layout, size)):
        brush.rectangle((left, top, max(right, left), max(bottom, top)), outline="white", width=line)
    for place in copies(extent(layout.pixel_boxes[0], scale), layout, size):
        outline(brush, place, 2 * line)
    side = NUMBER_SIDE * min(min(right - left, bottom - top) for left, top, right, bottom in parts)
    font = number_font(str(len(parts)), min(side, NUMBER_LIMIT), parts)
    for index, part in enumerate(parts):
        for left, top, right, bottom in copies(part, layout, size):
            number_at(brush, ((left + right) / 2, (top + bottom) / 2), str(index + 1), font)
    return from_bytes(torch.from_numpy(np.array(canvas)))[None]


def extent(box: Box, scale: float) -> Rectangle:
    """A tile's place in the picture."""
    return (
        box.left * scale,
        box.top * scale,
        (box.left + box.width) * scale - 1,
        (box.top + box.height) * scale - 1,
    )


def own_parts(layout: TileLayout, scale: float) -> list[Rectangle]:
    """The parts of the picture that are nearest to each tile: they do not overlap.

    The first or last one along a side whose ends meet may reach beyond the picture, see copies.
    """
    grid = layout.grid
    down, across = wrapped_axes(grid.wrap)
    rows = edges(grid.rows, grid.tile_height, grid.height, down)
    columns = edges(grid.columns, grid.tile_width, grid.width, across)
    cell = scale * layout.image_size[0] / grid.height
    return [
        (left * cell, top * cell, right * cell - 1, bottom * cell - 1)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def edges(starts: list[int], tile: int, length: int, around: bool = False) -> list[float]:
    """Where the own parts of tiles along a side meet: in the middle of what two tiles share."""
    meet = [(before + tile + after) / 2 for before, after in pairwise(starts)]
    if around:
        last = (starts[-1] + tile + starts[0] + length) / 2
        return [last - length, *meet, last]
    return [0.0, *meet, float(length)]


def copies(place: Rectangle, layout: TileLayout, size: tuple[int, int]) -> list[Rectangle]:
    """A place in the picture of `size` (width, height), and again at the other side of edges that it reaches over."""
    (down, across), (width, height) = wrapped_axes(layout.grid.wrap), size
    left, top, right, bottom = place
    return [
        (left + x, top + y, right + x, bottom + y)
        for y in ((0, -height, height) if down else (0,))
        for x in ((0, -width, width) if across else (0,))
        if right + x >= 0 and bottom + y >= 0 and left + x < width and top + y < height
    ]


def shade(pixels: np.ndarray, layout: TileLayout, parts: list[Rectangle], scale: float) -> np.ndarray:
    """The picture `[h, w, 3]` in bytes, own parts tinted and shared parts darkened."""
    shaded, tiles = pixels.astype(np.float32), np.zeros(pixels.shape[:2], dtype=np.int32)
    columns, size = len(layout.grid.columns), (pixels.shape[1], pixels.shape[0])
    for index, (part, box) in enumerate(zip(parts, layout.pixel_boxes, strict=True)):
        row, column = divmod(index, columns)
        for place in copies(part, layout, size):
            view = shaded[slices(place)]
            view += TINT * (np.array(COLORS[(row % 2) * 2 + column % 2], dtype=np.float32) - view)
        for place in copies(extent(box, scale), layout, size):
            tiles[slices(place)] += 1
    shaded[tiles > 1] *= SHARED
    return shaded.round().clip(0, 255).astype(np.uint8)


def slices(place: Rectangle) -> tuple[slice, slice]:
    left, top, right, bottom = place
    return slice(max(round(top), 0), round(bottom) + 1), slice(max(round(left), 0), round(right) + 1)


def outline(brush: ImageDraw.ImageDraw, place: Rectangle, line: int) -> None:
    """White between black, so that it can be seen over any picture."""
    left, top, right, bottom = place
    brush.rectangle((left, top, max(right, left), max(bottom, top)), outline="black", width=3 * line)
    inner = (left + line, top + line, max(right - line, left + line), max(bottom - line, top + line))
    brush.rectangle(inner, outline="white", width=line)


def number_font(widest: str, side: float, parts: list[Rectangle]) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font up to `side` pixels in which the widest number fits into every part."""
    font = ImageFont.load_default(size=max(side, 6.0))
    room = 0.86 * min(right - left for left, _, right, _ in parts)
    width = font.getlength("8" * len(widest))
    return font if width <= room else ImageFont.load_default(size=max(side * room / width, 6.0))


def number_at(
    brush: ImageDraw.ImageDraw,
    middle: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """White on black, so that it can be read over any picture."""
    stroke = max(round(getattr(font, "size", 10) / 12), 1)
    brush.text(middle, text, fill="white", font=font, anchor="mm", stroke_width=stroke, stroke_fill="black")
