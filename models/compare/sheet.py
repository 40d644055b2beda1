"""A contact sheet: results in columns, the whole picture in the first row, the same enlarged crops in the others."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..image import from_bytes, to_bytes
from .places import Place, crop_box

MARGIN = 12
LINE = 1.35
"""Height of a line of text in units of its size."""
BACKGROUND, INK, FAINT, CARD = (24, 24, 27), (244, 244, 245), (161, 161, 170), (39, 39, 42)
HUES = ((250, 204, 21), (56, 189, 248), (244, 114, 182), (74, 222, 128), (251, 146, 60), (167, 139, 250))
"""Colours of the frames that join a crop to its place in the picture, in turn."""


@dataclass(frozen=True)
class Entry:
    """One result, or why there is none."""

    label: str
    image: Tensor | None
    """`[H, W, 3]` in 0..1; None for a card in its place."""
    notes: Sequence[str] = ()
    """Short lines under the label: seconds, memory, scores."""
    card: str = ""
    """What the card says."""


def draw_sheet(entries: Sequence[Entry], places: Sequence[Place], side: int, cell: int, columns: int) -> Tensor:
    """The sheet `[H, W, 3]` in 0..1.

    entries: at least one; the images among them have one size. places: crops to enlarge, `side` pixels of the results
    each. cell: width of a column in pixels. columns: results side by side; more go into further bands. Crops are
    enlarged without smoothing, so that what is seen is what is there.
    """
    bands = [
        draw_band(entries[start : start + columns], places, side, cell) for start in range(0, len(entries), columns)
    ]
    sheet = Image.new("RGB", (max(band.width for band in bands), sum(band.height for band in bands)), BACKGROUND)
    top = 0
    for band in bands:
        sheet.paste(band, (0, top))
        top += band.height
    return from_bytes(torch.from_numpy(np.array(sheet)))


def draw_band(entries: Sequence[Entry], places: Sequence[Place], side: int, cell: int) -> Image.Image:
    pictures = [picture(entry.image) if entry.image is not None else None for entry in entries]
    size = next((drawn.size for drawn in pictures if drawn is not None), (4, 3))
    height = max(1, round(cell * size[1] / size[0]))
    text = max(11, cell // 18)
    header = round(LINE * text * (1 + max(len(entry.notes) for entry in entries))) + MARGIN // 2
    rows = header + height + (cell + MARGIN) * len(places)
    band = Image.new("RGB", ((cell + MARGIN) * len(entries) + MARGIN, rows + 2 * MARGIN), BACKGROUND)
    brush = ImageDraw.Draw(band)
    for column, (entry, drawn) in enumerate(zip(entries, pictures, strict=True)):
        left = MARGIN + column * (cell + MARGIN)
        write_header(brush, entry, (left, MARGIN), cell, text)
        top = MARGIN + header
        if drawn is None:
            write_card(brush, entry.card, (left, top, left + cell, MARGIN + rows), text)
            continue
        band.paste(drawn.resize((cell, height), Image.Resampling.LANCZOS), (left, top))
        for number, place in enumerate(places):
            hue, box = HUES[number % len(HUES)], crop_box(*drawn.size, side, place)
            scale = cell / drawn.width
            brush.rectangle(
                [offset + edge * scale for offset, edge in zip((left, top) * 2, box, strict=True)], None, hue, 2
            )
            crop_top = top + height + MARGIN + number * (cell + MARGIN)
            band.paste(drawn.resize((cell, cell), Image.Resampling.NEAREST, box), (left, crop_top))
            brush.rectangle((left, crop_top, left + cell - 1, crop_top + cell - 1), None, hue, 2)
    return band


def write_header(brush: ImageDraw.ImageDraw, entry: Entry, corner: tuple[int, int], width: int, size: int) -> None:
    left, top = corner
    for number, line in enumerate([entry.label, *entry.notes]):
        font = ImageFont.load_default(size if number == 0 else round(size * 0.85))
        brush.text(
            (left, top + round(number * LINE * size)), fitted(brush, line, font, width), FAINT if number else INK, font
        )


def fitted(brush: ImageDraw.ImageDraw, line: str, font, width: int) -> str:
    """The line, its end left out where it is wider than the column."""
    line = " ".join(line.split())
    if brush.textlength(line, font) <= width:
        return line
    while line and brush.textlength(line + "...", font) > width:
        line = line[:-1]
    return line + "..."


def write_card(brush: ImageDraw.ImageDraw, text: str, box: tuple[int, int, int, int], size: int) -> None:
    brush.rounded_rectangle(box, MARGIN, CARD)
    font = ImageFont.load_default(round(size * 0.9))
    letters = max(8, int((box[2] - box[0] - 2 * MARGIN) / brush.textlength("n", font)))
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, letters) or [""]]
    room = max(1, int((box[3] - box[1] - 2 * MARGIN) / (LINE * size)))
    for number, line in enumerate(lines[:room]):
        brush.text((box[0] + MARGIN, box[1] + MARGIN + number * LINE * size), line, INK, font)


def picture(image: Tensor) -> Image.Image:
    return Image.fromarray(to_bytes(image[..., :3].cpu()).numpy())
