"""The nodes of the pack, as ComfyUI's extension object lists them."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    agent,
    agent_loop,
    agent_rounds,
    compare,
    dreamsr,
    dreamsr_control,
    image,
    patch_prompts,
    pure,
    pure_entropy,
    pure_loaders,
    quality,
    reference,
    routes,
    tile_check,
    tiles,
    vicr,
    vicr_loaders,
    vicr_tiles,
    vlm,
    vosr,
    vosr_loaders,
)
from .finite import takes_numbers

# In the order of the frontend's node library: whole methods first, those that run without a download before the others.
MODULES = (
    vosr,
    pure,
    dreamsr,
    vosr_loaders,
    pure_loaders,
    pure_entropy,
    dreamsr_control,
    vicr,
    vicr_loaders,
    vicr_tiles,
    tiles,
    tile_check,
    patch_prompts,
    vlm,
    agent,
    agent_loop,
    agent_rounds,
    compare,
    quality,
    reference,
    image,
)

NODES = [takes_numbers(node) for module in MODULES for node in module.NODES]


class RealISRExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)

    async def on_load(self) -> None:
        routes.add_routes()
