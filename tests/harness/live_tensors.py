"""How much memory tensors hold at a time, counted and not measured: the same on every machine."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Bytes of the storages that operations make while it is entered, as long as they live; the most in `peak`.

    What one kernel takes and gives back within itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.known: dict[Any, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs or {})) if is_real(leaf)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if is_real(leaf) and leaf.untyped_storage().data_ptr() not in given:
                self.count(leaf.untyped_storage())
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        reference = weakref.ref(storage, self.forget)
        if reference in self.known:
            return
        self.known[reference] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)

    def forget(self, reference: Any) -> None:
        self.bytes -= self.known.pop(reference, 0)


def is_real(leaf: Any) -> bool:
    return torch.is_tensor(leaf) and leaf.device.type != "meta" and leaf.layout == torch.strided
