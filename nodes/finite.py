"""Numbers that are none: the API carries NaN and infinities, and the host's check of ranges lets NaN through."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

from comfy_api.latest import io


def require_numbers(inputs: dict[str, Any]) -> None:
    """Raises ValueError naming the first input that is NaN or infinite, also within a list of values."""
    for name, value in inputs.items():
        values = value if isinstance(value, list) else [value]
        odd = next((each for each in values if isinstance(each, float) and not math.isfinite(each)), None)
        if odd is not None:
            raise ValueError(f"The input {name} is {odd!r}. It takes a number.")


def takes_numbers(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, whose `execute` from now on refuses what `require_numbers` does, wherever the value comes from."""
    execute = node.__dict__["execute"].__func__
    if inspect.iscoroutinefunction(execute):

        @functools.wraps(execute)
        async def checked_later(cls: Any, *args: Any, **inputs: Any) -> Any:
            require_numbers(inputs)
            return await execute(cls, *args, **inputs)

        checked = checked_later
    else:

        @functools.wraps(execute)
        def checked_at_once(cls: Any, *args: Any, **inputs: Any) -> Any:
            require_numbers(inputs)
            return execute(cls, *args, **inputs)

        checked = checked_at_once
    node.execute = classmethod(checked)
    return node
