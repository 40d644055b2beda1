"""What the browser needs to draw the tiles of Edit Patch Prompts over the picture."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..host.preview_files import save_preview
from ..models.tiles.layout import CELL, TileLayout
from ..services.vlm.patch_prompts import TileCaptions

LONGEST = 1024
"""Pixels of the longer side of the picture, at most: it is drawn in a panel, and written in every run."""


def editor_ui(layout: TileLayout, text: str, image: Tensor | None, captions: TileCaptions | None) -> dict[str, Any]:
    """Plain JSON under `tile_editor`, to be saved with a workflow, hence small. All lengths are pixels of the image.

    Of tiles that go around its edges the size and the picture are left out: the browser draws none that are in two
    places, says so, and has them chosen by keyboard.

    image: `[B, H, W, C]` in 0..1, whose first is written into the temporary folder. Raises
    ValueError for one of another size than the grid's.
    """
    height, width = layout.image_size
    grid = layout.grid
    told: dict[str, Any] = {
        "tile": [grid.tile_width * CELL, grid.tile_height * CELL],
        "columns": [left * CELL for left in grid.columns],
        "rows": [top * CELL for top in grid.rows],
        "text": text,
    }
    if grid.wrap == "none":
        told["size"] = [width, height]
    if image is not None:
        next(layout.tiles(image, "Edit Patch Prompts"))
        if grid.wrap == "none":
            told["picture"] = save_preview(image[0, :height, :width], LONGEST)
    if captions is not None:
        failed = {str(number): reason for number, reason in captions.failed.items()}
        told["captions"] = {"whole": captions.whole, "tiles": list(captions.tiles), "failed": failed}
    return {"tile_editor": [told]}
