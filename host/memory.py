"""Work that is halved until it fits into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import comfy.model_management
import comfy.model_patcher
import comfy.sd

T = TypeVar("T")


R = TypeVar("R")


def within_memory(run: Callable[[Sequence[T]], list[R]], batch: Sequence[T]) -> list[R]:
    """`run` of a batch; where memory does not suffice, of its halves one after the other.

    Raises what `run` raises, also for a single item that does not fit.
    """
    try:
        return run(batch)
    except Exception as error:
        comfy.model_management.raise_non_oom(error)
        if len(batch) == 1:
            raise
    # Out of the handler: the exception holds the failed run's tensors alive.
    comfy.model_management.soft_empty_cache()
    half = len(batch) // 2
    return within_memory(run, batch[:half]) + within_memory(run, batch[half:])
