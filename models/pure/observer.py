"""How a running generation is watched and stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Phase = Literal["prompt", "text", "image"]

RUN_AHEAD = 2
"""Forwards the device may have queued beyond the one whose `step` is called."""


class Observer:
    """Override what is wanted; whatever a method raises stops the generation and reaches the caller."""

    def step(self, phase: Phase, done: int, total: int) -> None:
        """After every forward: `done` of `total` in this phase (images read; text tokens; image tokens)."""

    def text(self, ids: Sequence[list[int]], final: bool) -> None:
        """Text token ids so far of each image, every few tokens and once when all are complete."""

    def rows(self, done: int, codes: Callable[[], Tensor]) -> None:
        """When every image has another row of its token grid.

        codes: fetches the codes so far, `[B, done, columns]` long on the CPU; the device waits only if it is called.
        """


class GenerationError(RuntimeError):
    """The model did not write a valid answer; the message says where, and what to do."""


class Pacer:
    """Keeps the host at most RUN_AHEAD forwards in front of a CUDA device, so that a stop is prompt.

    It waits for an earlier forward while later ones are queued: the device never idles for it.
    """

    def __init__(self, device: torch.device):
        self.events: list[torch.cuda.Event] = []
        self.active = device.type == "cuda"

    def step(self) -> None:
        if not self.active:
            return
        event = torch.cuda.Event()
        event.record()
        self.events.append(event)
        if len(self.events) > RUN_AHEAD:
            self.events.pop(0).synchronize()
