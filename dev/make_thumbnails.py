"""Draw the pictures of the template gallery: `make thumbnails`.

Each is square: the example photo before and after the bundled model, which runs here, cut where the template's title
says, what the template adds drawn over it, and below it the method with what has to be fetched first. Methods whose
weights cannot be had here are not shown with results of their own; the picture says whose result it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from comfy_server import ComfyServer
from host_env import make_host
from templates import ROOT, Template, read, template, templates

SIDE, BAND = 512, 84
BEFORE, AFTER, PHOTO_SIDE = "before", "after", SIDE - BAND
COLOURS = {"ready": (34, 139, 84), "chat": (37, 99, 190), "download": (37, 99, 190), "none": (113, 113, 122)}
QUALITY = 74

Graph = dict[str, Any]


def quick_start(graph: Graph) -> Graph:
    """The quick start, with the enlarged photo saved as well."""
    (result,) = (node for node in graph.values() if node["class_type"] == "SaveImage")
    (upscale,) = (node_id for node_id, node in graph.items() if node["class_type"] == "RealISR_UpscaleForRestoration")
    kept = {
        node_id: node for node_id, node in graph.items() if node["class_type"] not in ("PreviewImage", "ImageCompare")
    }
    result["inputs"]["filename_prefix"] = AFTER
    before = {"class_type": "SaveImage", "inputs": {"images": [upscale, 0], "filename_prefix": BEFORE}}
    return {**kept, "before": before}


def make_pictures() -> dict[str, Image.Image]:
    graph = quick_start(read(template("vosr_nano_quickstart").twin))
    with tempfile.TemporaryDirectory() as base, ComfyServer(make_host(), Path(base), {"realisr": ROOT}) as server:
        result = server.client.run(graph)
        files = [result.images(node_id)[0] for node_id, node in graph.items() if node["class_type"] == "SaveImage"]
        return {file["filename"].partition("_")[0]: server.client.image(file) for file in files}


def draw(each: Template, pictures: Mapping[str, Image.Image], number: int) -> Image.Image:
    canvas = Image.new("RGB", (SIDE, SIDE), (24, 24, 27))
    box = crop(pictures[AFTER].size, number)
    halves = [pictures[name].crop(box).resize((SIDE, PHOTO_SIDE), Image.Resampling.BICUBIC) for name in (BEFORE, AFTER)]
    canvas.paste(halves[0], (0, 0))
    canvas.paste(halves[1].crop((SIDE // 2, 0, SIDE, PHOTO_SIDE)), (SIDE // 2, 0))
    brush = ImageDraw.Draw(canvas)
    for word, overlay in OVERLAYS.items():
        if word in each.title.lower():
            overlay(brush)
    brush.line((SIDE // 2, 0, SIDE // 2, PHOTO_SIDE), "white", 3)
    chip(brush, (10, PHOTO_SIDE - 12), "before", (0, 0, 0), "ls", 18)
    chip(
        brush,
        (SIDE - 10, PHOTO_SIDE - 12),
        "after" if each.runs_here else "after (bundled model)",
        (0, 0, 0),
        "rs",
        18,
    )
    brush.text((16, PHOTO_SIDE + BAND / 2), each.method, "white", ImageFont.load_default(34), "lm")
    chip(brush, (SIDE - 16, PHOTO_SIDE + BAND / 2), each.stamp, COLOURS[each.need], "rm", 24)
    return canvas


def crop(size: tuple[int, int], number: int) -> tuple[int, int, int, int]:
    """A part of the photo of a thumbnail's shape, another one for each."""
    height = 300
    width = round(height * SIDE / PHOTO_SIDE)
    left = 130 + (number * 37) % 150
    top = (number * 23) % 110
    return left, top, left + width, top + height


def chip(
    brush: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: tuple[int, int, int], anchor: str, size: int
) -> None:
    """A label on a rounded ground."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = brush.textbbox(at, text, font, anchor)
    brush.rounded_rectangle((left - 9, top - 7, right + 9, bottom + 7), 9, colour)
    brush.text(at, text, "white", font, anchor)


def grid(brush: ImageDraw.ImageDraw) -> None:
    """Tiles over the right half."""
    for x in range(SIDE // 2, SIDE, SIDE // 6):
        brush.line((x, 0, x, PHOTO_SIDE), (255, 255, 255), 1)
    for y in range(0, PHOTO_SIDE, PHOTO_SIDE // 4):
        brush.line((SIDE // 2, y, SIDE, y), (255, 255, 255), 1)


def prompts(brush: ImageDraw.ImageDraw) -> None:
    """A word in some of the tiles."""
    grid(brush)
    for at, word in (((300, 50), "leaves"), ((384, 160), "antler"), ((300, 268), "fur"), ((468, 268), "grass")):
        chip(brush, at, word, (161, 98, 7), "mm", 16)


def rounds(brush: ImageDraw.ImageDraw) -> None:
    for index, word in enumerate(("1", "2", "3", "best")):
        chip(brush, (SIDE // 2 + 36 + index * 52, 32), word, (126, 34, 206), "mm", 20)


def scores(brush: ImageDraw.ImageDraw) -> None:
    for index, length in enumerate((90, 130, 110, 170)):
        brush.rounded_rectangle(
            (SIDE // 2 + 16, 20 + index * 26, SIDE // 2 + 16 + length, 38 + index * 26), 5, (56, 189, 248)
        )


def heat(brush: ImageDraw.ImageDraw) -> None:
    """Squares from dark to bright: an entropy map's."""
    for row in range(4):
        for column in range(4):
            warm = (row * 5 + column * 3) % 8 * 32
            x, y = SIDE // 2 + 20 + column * 34, 20 + row * 34
            brush.rectangle((x, y, x + 32, y + 32), (warm, warm // 2, 255 - warm))


OVERLAYS: dict[str, Callable[[ImageDraw.ImageDraw], None]] = {
    "tiles": grid,
    "4k": grid,
    "a prompt for each": prompts,
    "agent": rounds,
    "score": scores,
    "compare": scores,
    "unsure": heat,
}
"""Word of a title -> what is drawn for it."""


def main() -> None:
    pictures = make_pictures()
    for number, each in enumerate(templates()):
        path = each.path.with_suffix(".jpg")
        draw(each, pictures, number).save(path, quality=QUALITY)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
