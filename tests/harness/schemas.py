"""What a V3 node's schema says, for tests over every node."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def pack_nodes() -> list[type[Any]]:
    """Every node class of the pack, as ComfyUI gets them. Needs the `host` fixture."""
    from _pack import load_pack

    async def listed() -> list[type[Any]]:
        extension = await load_pack().comfy_entrypoint()
        return await extension.get_node_list()

    # In a thread of its own: Playwright keeps an event loop running in this one.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(listed())).result()


def every_input(inputs: list[Any]) -> Iterator[Any]:
    """The inputs and, at any depth, those of dynamic ones (a DynamicCombo's options, an Autogrow's template)."""
    from comfy_api.latest import io

    for item in inputs:
        yield item
        if isinstance(item, io.DynamicCombo.Input):
            for option in item.options:
                yield from every_input(option.inputs)
        elif isinstance(item, io.Autogrow.Input):
            yield from every_input([item.template.input])
