"""A machine of two devices for the host, and what each of them ran.

Nothing here imports the host before it is called: tests take the `host` fixture first.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from .host import InProcessHost

FIRST, SECOND = torch.device("cpu"), torch.device("cpu", 1)
"""Two devices to the host, which tells them apart by their names; to torch both are the CPU."""

EMPTY = torch.device("meta")
"""A second device that really is one: torch refuses to mix its tensors, which hold no numbers, with the CPU's."""


def free_memory(device: Any = None, torch_free_too: bool = False) -> Any:
    """The host has no answer for the empty device."""
    return (2**33, 2**33) if torch_free_too else 2**33


@contextmanager
def two_devices(second: torch.device = SECOND) -> Iterator[None]:
    """Let the host find two devices, as on a machine with two GPUs. Skips where it cannot share work between them."""
    pytest.importorskip("comfy.multigpu")
    import comfy.model_management as management

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(management, "get_all_torch_devices", lambda exclude_current=False: [FIRST, second])
        patch.setattr(management, "get_free_memory", free_memory)
        yield
        loaded = management.current_loaded_models
        loaded[:] = [each for each in loaded if each.model is not None and each.model.load_device == FIRST]


def split(model: Any, gpus: int = 2) -> Any:
    """The MODEL behind the host's own node."""
    import comfy.model_management as management
    from comfy_extras.nodes_multigpu import MultiGPUCFGSplitNode

    # The node looks through what is loaded, and trips over what earlier tests left to the garbage.
    management.current_loaded_models[:] = [each for each in management.current_loaded_models if each.model is not None]
    return InProcessHost.run(MultiGPUCFGSplitNode, model=model, max_gpus=gpus)[0]


@dataclass
class Calls:
    """Every call of the networks of the models it watches: which copy of the network ran how many items."""

    networks: list[Any] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    act: Callable[[int], None] = lambda number: None
    """Called with the number of each call, before it."""
    lock: Any = field(default_factory=threading.Lock)

    def watch(self, model: Any) -> Any:
        """A clone of the MODEL that is counted. What it gives on the empty device is replaced by zeros."""
        from comfy.patcher_extension import WrappersMP

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "calls", self.record)
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "calls", with_numbers)
        return clone

    def record(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            self.networks.append(executor.class_obj)
            self.items.append(x.shape[0])
            self.threads.add(threading.get_ident())
            number = len(self.networks)
        self.act(number)
        return executor(x, *args, **kwargs)

    @property
    def items_per_copy(self) -> list[int]:
        """Items that every copy of the network ran, the most first."""
        counts: Counter[int] = Counter()
        for network, items in zip(self.networks, self.items, strict=True):
            counts[id(network)] += items
        return [count for _, count in counts.most_common()]


def with_numbers(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    # A new thread begins with the machine's number of them, and sums then round otherwise.
    torch.set_num_threads(1)
    out = executor(*args, **kwargs)
    return torch.zeros(out.shape, dtype=out.dtype) if out.is_meta else out
