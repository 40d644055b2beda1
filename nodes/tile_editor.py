"""What the browser needs to draw the tiles of Edit Patch Prompts over the picture."""

from __future__ import annotations

import uuid
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..models.image import BOX, resize
from ..models.tiles.layout import CELL, TileLayout
from ..services.vlm.patch_prompts import TileCaptions

LONGEST = 1024
"""Pixels of the longer side of the picture, at most: it is drawn in a panel, and written in every run."""


def editor_ui(layout: TileLayout, text: str, image: Tensor | None, captions: TileCaptions | None) -> dict[str, Any]:
    """Plain JSON under `tile_editor`, to be saved with a workflow, hence small. All lengths are pixels of the image.

    image: `[B, H, W, C]` in 0..1, whose first is written into the temporary folder as Preview Image does it. Raises
    ValueError for one of another size than the grid's.
    """
    height, width = layout.image_size
    grid = layout.grid
    told: dict[str, Any] = {
        "size": [width, height],
        "tile": [grid.tile_width * CELL, grid.tile_height * CELL],
        "columns": [left * CELL for left in grid.columns],
        "rows": [top * CELL for top in grid.rows],
        "text": text,
    }
    if image is not None:
        next(layout.tiles(image, "Edit Patch Prompts"))
        told["picture"] = saved_picture(image[:1, :height, :width, :3])
    if captions is not None:
        failed = {str(number): reason for number, reason in captions.failed.items()}
        told["captions"] = {"whole": captions.whole, "tiles": list(captions.tiles), "failed": failed}
    return {"tile_editor": [told]}


def saved_picture(image: Tensor) -> dict[str, str]:
    """Where the browser finds an image `[1, H, W, 3]` in 0..1, shrunk to LONGEST."""
    height, width = image.shape[1:3]
    scale = min(1.0, LONGEST / max(height, width))
    small = resize(image, max(round(width * scale), 1), max(round(height * scale), 1), BOX)
    # A name of its own: a workflow that was saved before a restart must not show another's picture.
    prefix = f"realisr_tiles_{uuid.uuid4().hex[:12]}"
    (saved,) = ui.ImageSaveHelper.save_images(small, prefix, io.FolderType.temp, cls=None, compress_level=1)
    return dict(saved)
