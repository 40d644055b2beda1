"""Work that is halved until it fits into memory, and results that are kept as long as there is room."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

import comfy.model_management
import psutil
import torch

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class MostTogether:
    """How much memory has turned out to hold, for those who ask again."""

    items: int


def within_memory(
    run: Callable[[Sequence[T]], list[R]],
    batch: Sequence[T],
    most: MostTogether | None = None,
    make_room: Callable[[], bool] = lambda: False,
) -> list[R]:
    """One result for each item of a batch, by `run` of at most `most.items` together.

    Where memory does not suffice `most.items` becomes half of what was tried, and stays so. make_room lets go of what
    the caller keeps and says whether there was any: then a single item is tried once more. Raises what `run` raises,
    also for a single item that does not fit.
    """
    most = most or MostTogether(len(batch))
    done: list[R] = []
    while len(done) < len(batch):
        part = batch[len(done) : len(done) + most.items]
        try:
            done += run(part)
            continue
        except Exception as error:
            comfy.model_management.raise_non_oom(error)
            if not make_room() and len(part) == 1:
                raise
        # Out of the handler: the exception holds the failed run's tensors alive.
        comfy.model_management.soft_empty_cache()
        most.items = max(len(part) // 2, 1)
    return done


NOTHING = -1
"""The budget of a memo that keeps nothing, not even what counts no bytes."""


class BoundedMemo(Generic[T]):
    """Values kept by key until they take `budget` bytes; further ones are not, so that memory does not grow.

    Threads may share one.
    """

    def __init__(self, budget: int):
        self.budget = budget
        self.changing = Lock()
        self.kept: dict[Hashable, tuple[T, int]] = {}

    def get(self, key: Hashable) -> T | None:
        found = self.kept.get(key)
        return None if found is None else found[0]

    def put(self, key: Hashable, value: T, nbytes: int) -> None:
        """Keep a value if there is room for its `nbytes`; the key's former one is let go."""
        with self.changing:
            self.budget += self.kept.pop(key, (None, 0))[1]
            if nbytes <= self.budget:
                self.budget -= nbytes
                self.kept[key] = (value, nbytes)


def give_back_freed() -> None:
    """Between stages of a large picture: the machine gets what they freed.

    glibc keeps freed blocks of up to 32 MB, such as a tile's, for itself. After many tiles they come to a picture.
    """
    if hasattr(psutil, "heap_trim"):  # from 7.2 on
        psutil.heap_trim()


def available_memory(device: torch.device) -> int:
    """Bytes that a run can have on a device: what is free, and what the host would unload for it."""
    management = comfy.model_management
    held = sum(
        loaded.model_loaded_memory()
        for loaded in management.current_loaded_models
        if loaded.model is not None and loaded.device == device and not management.is_device_cpu(device)
    )
    return int(management.get_free_memory(device)) + int(held)
