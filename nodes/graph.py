"""A workflow as the browser or a prompt states it, read before it runs.

A graph is in API form: node id -> {"class_type": ..., "inputs": {name: value, or [node id, output]}}. It comes from
outside, so nothing is taken for granted: what cannot be known raises Unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import folder_paths
from PIL import ExifTags, Image

from ..models.tiles.layout import TileLayout
from .image import LOW_RESOLUTION, PHOTOS
from .inputs import checked_wrap, resize_input, size_asked

LONGEST_WAY = 100
"""Nodes that are followed one after another; a ring of links ends here."""

PRIMITIVES = ("PrimitiveInt", "PrimitiveFloat", "PrimitiveString", "PrimitiveStringMultiline", "PrimitiveBoolean")
SAME_SIZE = {
    "RealISR_AlignColors": "image",
    "JoinImageWithAlpha": "image",
    "RepeatImageBatch": "image",
    "ImageFromBatch": "image",
    "ImageInvert": "image",
    "ImageBlur": "image",
    "ImageSharpen": "image",
    "RebatchImages": "images",
}
"""Nodes whose first output is of the size of one input -> that input."""

MAX_PIXELS_SIDE = 2**20


class Unknown(Exception):
    """Something that is known only once the workflow runs."""


@dataclass(frozen=True)
class Node:
    """A node of a graph."""

    graph: Mapping[str, Any]
    id: str
    way: int = 0
    """How many nodes were followed to it."""

    @classmethod
    def of(cls, graph: Any, node_id: Any, way: int = 0) -> Node:
        if not isinstance(graph, Mapping) or not isinstance(graph.get(str(node_id)), Mapping) or way > LONGEST_WAY:
            raise Unknown(f"node {node_id!r:.20}")
        return cls(graph, str(node_id), way)

    @property
    def kind(self) -> str:
        return str(self.graph[self.id].get("class_type"))

    @property
    def inputs(self) -> Mapping[str, Any]:
        inputs = self.graph[self.id].get("inputs")
        return inputs if isinstance(inputs, Mapping) else {}

    def source(self, name: str) -> Node | None:
        """The node that an input comes from; None where it is not connected."""
        given = self.inputs.get(name)
        return Node.of(self.graph, given[0], self.way + 1) if isinstance(given, list) and given else None

    def connected(self, name: str) -> bool:
        return isinstance(self.inputs.get(name), list)

    def value(self, name: str, default: Any = None) -> Any:
        """What a widget holds, also through a node that does nothing but hold a value."""
        given = self.inputs.get(name, default)
        if not isinstance(given, list):
            return given
        source = self.source(name)
        if source is None or source.kind not in PRIMITIVES:
            raise Unknown(name)
        return source.value("value")

    def number(self, name: str, default: float | None = None) -> float:
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Unknown(name)
        return value

    def choice(self, name: str) -> dict[str, Any]:
        """A dynamic input as a node is given it: {name: option, widget: value}."""
        dotted = {key.partition(".")[2]: self.value(key) for key in self.inputs if str(key).startswith(f"{name}.")}
        return {name: self.value(name), **dotted}

    def along(self, name: str, *kinds: str) -> Node | None:
        """The node of one of these kinds that an input comes from, past nodes that only pass it on (LoRAs and such)."""
        node = self.source(name)
        while node is not None and node.kind not in kinds:
            node = node.source(name)
        return node


def picture_size(node: Node | None) -> tuple[int, int]:
    """(width, height) in pixels of the IMAGE that a node gives."""
    if node is None:
        raise Unknown("image")
    reader = SIZES.get(node.kind)
    if reader is not None:
        width, height = reader(node)
    elif node.kind in SAME_SIZE:
        width, height = picture_size(node.source(SAME_SIZE[node.kind]))
    else:
        raise Unknown(node.kind)
    if not (1 <= width <= MAX_PIXELS_SIDE and 1 <= height <= MAX_PIXELS_SIDE):
        raise Unknown(node.kind)
    return int(width), int(height)


def loaded_size(node: Node) -> tuple[int, int]:
    """Of Load Image, from the file's head; turned as its orientation says."""
    name = node.value("image")
    if not isinstance(name, str) or not folder_paths.exists_annotated_filepath(name):
        raise Unknown("image")
    try:
        with Image.open(folder_paths.get_annotated_filepath(name)) as file:
            turned = file.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (file.height, file.width) if turned else file.size
    # Pillow fails in many ways on bytes that are no picture; Load Image will say so.
    except Exception as error:
        raise Unknown("image") from error


def example_size(node: Node) -> tuple[int, int]:
    photo = PHOTOS / f"{node.value('photo')}.jpg"
    if photo.parent != PHOTOS or not photo.is_file():
        raise Unknown("photo")
    with Image.open(photo) as file:
        return file.size


def scaled_size(node: Node) -> tuple[int, int]:
    """Of Upscale Image, where a side of 0 follows the other."""
    asked = int(node.number("width")), int(node.number("height"))
    width, height = picture_size(node.source("image")) if 0 in asked else asked
    return (
        asked[0] or (max(1, round(width * asked[1] / height)) if asked[1] else width),
        asked[1] or (max(1, round(height * asked[0] / width)) if asked[0] else height),
    )


def scaled_by_size(node: Node) -> tuple[int, int]:
    width, height = picture_size(node.source("image"))
    factor = node.number("scale_by")
    return round(width * factor), round(height * factor)


def scaled_to_pixels(node: Node) -> tuple[int, int]:
    width, height = picture_size(node.source("image"))
    step, total = max(1, int(node.number("resolution_steps", 1))), node.number("megapixels") * 2**20
    factor = math.sqrt(total / (width * height))
    return round(width * factor / step) * step, round(height * factor / step) * step


def cropped_size(node: Node) -> tuple[int, int]:
    width, height = picture_size(node.source("image"))
    left, top = min(int(node.number("x", 0)), width - 1), min(int(node.number("y", 0)), height - 1)
    return min(int(node.number("width")), width - left), min(int(node.number("height")), height - top)


def restored_size(node: Node) -> tuple[int, int]:
    """Of the nodes of this pack that have `resize`."""
    return size_asked(*picture_size(node.source("image")), node.choice(resize_input().id))


def degraded_size(node: Node) -> tuple[int, int]:
    width, height = picture_size(node.source("image"))
    if node.value("output_size", LOW_RESOLUTION) != LOW_RESOLUTION:
        return width, height
    factor = node.number("scale")
    return max(1, round(width / factor)), max(1, round(height / factor))


def tile_layout(node: Node, name: str = "tile_grid") -> TileLayout | None:
    """What a Tile Grid gives to an input; None where it is not connected. ValueError: bad tiles."""
    if not node.connected(name):
        return None
    grid = node.along(name, "RealISR_TileGrid")
    if grid is None:
        raise Unknown(name)
    width, height = picture_size(grid.source("size_of"))
    tile, overlap, align = (int(grid.number(each)) for each in ("tile_size", "overlap", "align"))
    return TileLayout.fitted(height, width, tile, overlap, align, checked_wrap(grid.value("wrap", "none")))


SIZES = {
    "LoadImage": loaded_size,
    "LoadImageOutput": loaded_size,
    "RealISR_ExamplePhoto": example_size,
    "EmptyImage": lambda node: (int(node.number("width")), int(node.number("height"))),
    "ImageScale": scaled_size,
    "ImageScaleBy": scaled_by_size,
    "ImageScaleToTotalPixels": scaled_to_pixels,
    "ImageCrop": cropped_size,
    "RealISR_DegradeImage": degraded_size,
    **dict.fromkeys(
        (
            "RealISR_UpscaleForRestoration",
            "RealISR_RestorationCFGSampler",
            "RealISR_DreamSRRestore",
            "RealISR_ARTokenRestorer",
        ),
        restored_size,
    ),
}
"""Nodes that say by themselves how large their picture is."""
