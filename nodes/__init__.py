"""The nodes of the pack, as ComfyUI's extension object lists them."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    agent,
    agent_loop,
    compare,
    dreamsr,
    dreamsr_control,
    image,
    labels,
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

MODULES = (
    vosr_loaders,
    vosr,
    vicr_loaders,
    vicr,
    vicr_tiles,
    dreamsr,
    dreamsr_control,
    pure_loaders,
    pure,
    pure_entropy,
    tiles,
    tile_check,
    patch_prompts,
    vlm,
    agent,
    agent_loop,
    compare,
    quality,
    reference,
    image,
)


class RealISRExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [labels.labelled(node) for module in MODULES for node in module.NODES]

    async def on_load(self) -> None:
        routes.add_routes()
