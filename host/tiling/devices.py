"""Several devices on the tiles of one image.

ComfyUI's MultiGPU CFG Split copies a model to other devices and gives each of them conditions to run. A model without
guidance has one condition, so only one device would work. Here each gets tiles instead, with all of their conditions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..types import Model

if TYPE_CHECKING:
    from comfy.multigpu import MultiGPUThreadPool

T = TypeVar("T")
R = TypeVar("R")

COPIES, POOL = "multigpu_clones", "multigpu_thread_pool"
"""The host's names in a model's options: the MODEL by device, the run's own first, and a thread for each."""


@dataclass(frozen=True)
class Devices:
    """The devices that share the tiles of a run."""

    copies: Mapping[torch.device, Model]
    pool: MultiGPUThreadPool

    @classmethod
    def of(cls, model_options: Mapping[str, Any]) -> Devices | None:
        """Those that the host has made ready for a run; None where there is only one."""
        copies, pool = model_options.get(COPIES), model_options.get(POOL)
        return None if pool is None or not copies or len(copies) < 2 else cls(copies, pool)

    def together(self, tiles: int, most: int) -> int:
        """How many of so many tiles a device runs at a time, at most `most`, so that all have equally much to do."""
        rounds = math.ceil(tiles / (most * len(self.copies)))
        return math.ceil(tiles / (rounds * len(self.copies)))

    def parts(self, tiles: Sequence[T]) -> list[Sequence[T]]:
        """Neighbouring tiles for each device, none for some where there are too few."""
        size = math.ceil(len(tiles) / len(self.copies))
        return [tiles[first : first + size] for first in range(0, len(tiles), size)]

    def run(self, work: Callable[[torch.device, Sequence[T]], list[R]], tiles: Sequence[T]) -> list[R]:
        """What `work` gives for the tiles, in their order: each part of them in the thread of its device.

        Waits for all devices, and raises the first error of any.
        """
        inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

        def in_thread(device: torch.device, part: Sequence[T]) -> list[R]:
            # Threads start without the modes of the one that waits for them.
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                return work(device, part)

        busy = list(zip(self.copies, self.parts(tiles), strict=False))
        for device, part in busy:
            self.pool.submit(device, in_thread, device, part)
        # All of them, after an error too: what stays in a device's queue would be taken for its next result.
        outcomes = [self.pool.get_result(device) for device, _ in busy]
        for _, error in outcomes:
            if error is not None:
                raise error
        return [result for results, _ in outcomes for result in results]

    def options_on(self, device: torch.device, model_options: Mapping[str, Any]) -> dict[str, Any]:
        """A model's options that make the host run everything on this device, and give it back to the first."""
        alone = {**model_options, COPIES: {device: self.copies[device]}}
        del alone[POOL]
        return alone


def without_devices(model_options: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options that make the host run everything on the run's own device."""
    return {name: value for name, value in model_options.items() if name not in (COPIES, POOL)}


def needs_one_device(cond: Mapping[str, Any]) -> bool:
    """Whether an entry makes the host load models or change weights between forwards, which only one thread can do."""
    control = cond.get("control")
    while control is not None:
        if control.vae is not None:
            return True
        control = control.previous_controlnet
    return cond.get("hooks") is not None
