"""What a V3 node's schema says, for tests over every node."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def in_a_thread(work: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns. In a thread of its own: Playwright keeps an event loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def extension() -> Any:
    """The pack's extension, as ComfyUI asks for it. Raises what the entry point raises."""
    from _pack import load_pack

    return in_a_thread(load_pack().comfy_entrypoint())


def pack_nodes() -> list[type[Any]]:
    """Every node class of the pack, as ComfyUI gets them. Needs the `host` fixture."""
    return in_a_thread(extension().get_node_list())


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
