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


def grey() -> Any:
    import torch

    return torch.full((1, 16, 16, 3), 0.5)


def given_to(node: Any, name: str, image: Any) -> dict[str, Any]:
    """A node's inputs: widgets at their defaults, other images grey, nothing on the other sockets."""
    from comfy_api.latest import io

    schema = node.define_schema()
    inputs = {given.id: image if given.id == name else value_of(given) for given in schema.inputs}
    # Metrics that compare with a reference are another list, and its default needs no weights.
    skipped = {"metrics"} if "reference" in inputs else set()
    inputs |= {key: value for key, value in given_by_hand().items() if key in inputs.keys() - skipped}
    if not schema.is_input_list:
        return inputs
    return {
        given.id: {key: [value] for key, value in inputs[given.id].items()}
        if isinstance(given, io.DynamicCombo.Input)
        else [inputs[given.id]]
        for given in schema.inputs
    }


def given_by_hand() -> dict[str, Any]:
    """What a node reads before it looks at the image."""
    from realisr.models.vicr.diptych import build_diptych

    made = build_diptych(grey(), 16, 16, "side by side")
    return {"metrics": "piqe", "previous_prompt": "a house", "prompt": "a house", "diptych": made.diptych}


def value_of(given: Any) -> Any:
    from comfy_api.latest import io

    if isinstance(given, io.Image.Input):
        return grey()
    if isinstance(given, io.DynamicCombo.Input):
        option = given.options[0]
        return {given.id: option.key, **{inner.id: value_of(inner) for inner in option.inputs}}
    if isinstance(given, io.Combo.Input):
        return given.default or (given.options[0] if given.options else None)
    return getattr(given, "default", None)
