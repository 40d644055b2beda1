"""Nodes that only tests use, loaded by the test server beside the pack."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import basic, soak, text, vicr

MODULES = (basic, soak, text, vicr)


class RealISRTestExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for module in MODULES for node in module.NODES]


async def comfy_entrypoint() -> ComfyExtension:
    return RealISRTestExtension()
