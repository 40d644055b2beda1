"""Tile QA: which tiles of a restored image went wrong, and why."""

from __future__ import annotations

from dataclasses import fields
from functools import partial

import torch
from comfy_api.latest import io

from ..host.images import checked_image
from ..host.progress import show_on_node
from ..host.tile_repair import scale_of
from ..models.image import upscale
from ..models.tile_check.check import Thresholds, check_tiles
from ..models.tile_check.preview import draw_check
from ..models.tiles.grid import TileGrid
from ..models.tiles.layout import CELL, TileLayout, require_tile
from .inputs import error_of
from .sockets import TileGridSocket
from .tiles import CATEGORY

NAME = "Check Tiles"

ASPECT_TOLERANCE = 0.05
"""Of the aspect ratio: small images are rounded when they are enlarged."""

PADDING = 16
"""Pixels by which a method may pad an image to whole patches."""

LIMITS = {
    "color": "Levels of 255 by which the mean of a channel may differ from the input's.",
    "structure": (
        "How far the low frequencies may differ, in parts of the input's own: 1 is a tile that shows something else."
    ),
    "agreement": (
        "Least share of the input's shapes that a tile must have at the same place, in parts of what the middle one of "
        "all tiles has: 1 is all, 0 none."
    ),
    "blurred": "How many times less detail than its neighbours a tile may have, for what the input shows there.",
    "noisy": "How many times more detail than its neighbours a tile may have.",
    "seam": "How many times more the pixels may step at a tile's borders than beside them.",
}


def limit_inputs() -> list[io.Input]:
    """One widget for each threshold, as `Thresholds` has them."""
    return [
        io.Float.Input(
            limit.name,
            default=limit.default,
            min=0.0,
            max=255.0 if limit.name == "color" else 100.0,
            step=1.0 if limit.name == "color" else 0.05,
            round=0.001,
            advanced=True,
            tooltip=f"{LIMITS[limit.name]} 0: do not look at it.",
        )
        for limit in fields(Thresholds)
    ]


class CheckTiles(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_CheckTiles",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Compares each tile of a restored image with the image it was restored from: not a number, one flat "
                "colour, colour off, shows something else, far less or more detail than its neighbours, a seam at its "
                "borders. Outlines the bad ones and says why. The whole-method nodes can restore such tiles again "
                "(tile_check). Works on the result of any method."
            ),
            search_aliases=["tile qa", "quality", "check", "bad tiles", "seams", "blurry tiles", "black tile", "drift"],
            inputs=[
                io.Image.Input("image", tooltip="The restored image or batch. It may hold NaN."),
                io.Image.Input(
                    "lq_image",
                    tooltip="The low-quality image it was restored from, at its own size. One for all or for each.",
                ),
                io.Int.Input(
                    "tile_size",
                    default=512,
                    min=16,
                    max=4096,
                    step=16,
                    tooltip="Side of the tiles the image was restored in, in pixels of the result.",
                ),
                io.Int.Input(
                    "overlap",
                    default=64,
                    min=0,
                    max=2048,
                    step=8,
                    tooltip="Pixels that neighbouring tiles share. A tile is judged by its part of what is shared.",
                ),
                *limit_inputs(),
                TileGridSocket.Input(
                    "tile_grid",
                    optional=True,
                    tooltip="The grid the image was restored in (Tile Grid), in place of tile_size and overlap.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="preview", tooltip="The image with its bad tiles outlined and numbered."),
                io.String.Output(
                    display_name="report", tooltip="The bad tiles and what is wrong with each, a line for each."
                ),
                io.Mask.Output(display_name="mask", tooltip="White over bad tiles, to inpaint or to composite."),
                io.Int.Output(display_name="count", tooltip="Number of bad tiles, of all images of the batch."),
            ],
        )

    @classmethod
    def validate_inputs(cls, tile_size: int | None = None, overlap: int | None = None):
        # Values on wires are not known yet.
        if tile_size is None or overlap is None:
            return True
        return error_of(partial(require_tile, tile_size, overlap)) or True

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        lq_image: torch.Tensor,
        tile_size: int,
        overlap: int,
        color: float,
        structure: float,
        agreement: float,
        blurred: float,
        noisy: float,
        seam: float,
        tile_grid: TileLayout | None = None,
    ) -> io.NodeOutput:
        restored, lq = image_with_nan(image), checked_image(lq_image, f"{NAME} (lq_image): ")
        limits = Thresholds(color, structure, agreement, blurred, noisy, seam)
        height, width = restored.shape[1:3]
        check_pair(restored, lq)
        grid = (
            pixel_grid(height, width, tile_size, overlap) if tile_grid is None else grid_over(tile_grid, height, width)
        )
        enlarged, scale = upscale(lq[..., :3], width, height), scale_of(lq, width, height)
        previews, masks, reports, count = [], [], [], 0
        for index, picture in enumerate(restored):
            found = check_tiles(picture[..., :3], enlarged[index % len(enlarged)], grid, scale, limits)
            previews.append(draw_check(found, picture[..., :3]))
            masks.append(found.mask(height, width))
            title = f"Image {index + 1}: " if len(restored) > 1 else ""
            reports.append(title + found.report())
            count += len(found.bad)
        show_on_node(f"{count} bad tiles" if count else "All tiles are good")
        return io.NodeOutput(torch.stack(previews), "\n".join(reports), torch.stack(masks), count)


def image_with_nan(image: torch.Tensor) -> torch.Tensor:
    """A checked IMAGE, whose values may be no numbers: those are what the node looks for."""
    if isinstance(image, torch.Tensor) and image.is_floating_point():
        checked_image(torch.where(image.isfinite(), image, 0.0), f"{NAME} (image): ")
        return image.float()
    return checked_image(image, f"{NAME} (image): ")


def pixel_grid(height: int, width: int, tile: int, overlap: int) -> TileGrid:
    """Tiles over an image, in pixels, no larger than it."""
    require_tile(tile, overlap)
    return TileGrid(height, width, min(tile, height), min(tile, width), overlap)


def grid_over(layout: TileLayout, height: int, width: int) -> TileGrid:
    """The tiles of a Tile Grid in pixels. Raises ValueError for one over a smaller image, or a much larger one.

    An image that was padded for its restoration is smaller by less than PADDING.
    """
    rows, columns = layout.image_size
    if not (height <= rows < height + PADDING and width <= columns < width + PADDING):
        raise ValueError(
            f"{NAME}: the tile grid is for {columns}x{rows} pixels, the image is {width}x{height}. Give Tile Grid the "
            f"image at the size of the result, both sides multiples of {CELL}."
        )
    if layout.grid.wrap != "none":
        raise ValueError(
            f"{NAME}: the connected Tile Grid lays tiles around the edge (wrap {layout.grid.wrap}), which this node "
            "does not look at. Connect a Tile Grid with wrap set to none."
        )
    return layout.grid.scaled(CELL)


def check_pair(restored: torch.Tensor, lq: torch.Tensor) -> None:
    """Raises ValueError unless the images can be of one picture, one low-quality image for all or one for each."""
    if len(lq) not in (1, len(restored)):
        raise ValueError(
            f"{NAME}: {len(restored)} restored images and {len(lq)} low-quality ones. Give one for all or for each."
        )
    (height, width), (lq_height, lq_width) = restored.shape[1:3], lq.shape[1:3]
    if abs(width * lq_height / (height * lq_width) - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"{NAME}: the image is {width}x{height} and the low-quality image {lq_width}x{lq_height}, of another "
            "shape. Give the image that this one was restored from, uncropped."
        )


NODES = [CheckTiles]
