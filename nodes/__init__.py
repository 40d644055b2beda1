"""The nodes of the pack, as ComfyUI's extension object lists them."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    acceleration,
    agent,
    agent_loop,
    captioning,
    color,
    degrade,
    dreamsr,
    mm_controlnet,
    multidiffusion,
    patch_captioner,
    pure,
    pure_entropy,
    pure_loaders,
    quality,
    upscale,
    vicr,
    vicr_bridge,
    vicr_tiles,
    vlm,
    vosr,
    vosr_loaders,
)

MODULES = (
    vosr_loaders,
    vosr,
    vicr,
    vicr_bridge,
    vicr_tiles,
    agent_loop,
    upscale,
    color,
    degrade,
    vlm,
    agent,
    captioning,
    multidiffusion,
    patch_captioner,
    mm_controlnet,
    acceleration,
    dreamsr,
    quality,
    pure_loaders,
    pure,
    pure_entropy,
)


class RealISRExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for module in MODULES for node in module.NODES]
