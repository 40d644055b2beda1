"""Random numbers of training: functions of (seed, number), alike in a resumed run and on other devices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Random numbers of one micro-batch, made on the CPU and moved to the device.

    Micro-batches are numbered through all steps and processes, so that two processes draw what one with twice the
    accumulation does.
    """

    def __init__(self, seed: int | Sequence[int], number: int, device: torch.device | str = "cpu"):
        words = (seed,) if isinstance(seed, int) else tuple(seed)
        # Shifted as Python's number: numpy 1 does not shift its own unsigned ones.
        state = int(np.random.SeedSequence((*words, number)).generate_state(1, np.uint64)[0]) >> 1
        self.generator = torch.Generator().manual_seed(state)
        self.device = torch.device(device)
        self._state = state

    @cached_property
    def numpy(self) -> np.random.Generator:
        """For what numpy draws; independent of the torch generator's position."""
        return np.random.default_rng(self._state)

    def normal(self, *shape: int) -> Tensor:
        """float32 of the standard normal distribution."""
        return torch.randn(shape, generator=self.generator).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """float32 in [0, 1)."""
        return torch.rand(shape, generator=self.generator).to(self.device)

    def choice(self, count: int) -> int:
        """0 .. count - 1."""
        return int(torch.randint(count, (), generator=self.generator))
