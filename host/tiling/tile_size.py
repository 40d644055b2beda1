"""How large a tile fits the free memory."""

from __future__ import annotations

import comfy.model_management

from ...models.tiles.layout import CELL
from .sampling import MEMORY_MARGIN

AUTO_TILES = (1024, 768, 512)
"""Tile sides in pixels, best first: more context, up to about the size FLUX was trained at. The last is the least."""


def largest_tile(model) -> int:
    """The largest of AUTO_TILES that one forward of the MODEL has memory for, once its weights are loaded."""
    management = comfy.model_management
    free = management.get_free_memory(model.load_device)
    # Weights still to be loaded take their room first, as far as the host would not leave them offloaded.
    free -= max(model.model_size() - model.loaded_size(), 0)
    channels = model.model.latent_format.latent_channels
    for tile in AUTO_TILES[:-1]:
        cells = tile // CELL
        if model.model.memory_required([1, channels, cells, cells]) * MEMORY_MARGIN <= free:
            return tile
    return AUTO_TILES[-1]
