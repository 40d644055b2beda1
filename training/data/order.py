"""Which photo a sample is: every photo of a source once before any comes again, sources in proportion to weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np


class Order:
    """Sample number -> (source, photo), a function of the seed and the number alone.

    An epoch has about as many samples as there are photos; a source's part of it is its weight's.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int):
        self.sizes, self.seed = tuple(sizes), seed
        self.shares = np.array(weights, dtype=float) / sum(weights)
        self.slots = np.maximum(1, np.round(self.shares * sum(sizes))).astype(int)
        self.ends = np.cumsum(self.slots)
        self._shuffled: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def place(self, number: int) -> tuple[int, int]:
        """Source and photo of a sample."""
        epoch, slot = divmod(number, len(self))
        position = int(self.shuffled(0, epoch, len(self))[slot])
        source = int(np.searchsorted(self.ends, position, side="right"))
        within = position - int(self.ends[source] - self.slots[source])
        turn = epoch * int(self.slots[source]) + within
        round_, index = divmod(turn, self.sizes[source])
        return source, int(self.shuffled(1 + source, round_, self.sizes[source])[index])

    def another(self, rng: np.random.Generator) -> tuple[int, int]:
        """Any source and photo, for one that could not be used."""
        source = int(rng.choice(len(self.sizes), p=self.shares))
        return source, int(rng.integers(self.sizes[source]))

    def shuffled(self, list_: int, round_: int, count: int) -> np.ndarray:
        key = (list_, round_, count)
        if key not in self._shuffled:
            shuffled = np.random.default_rng((self.seed, *key)).permutation(count)
            self._shuffled[key] = shuffled.astype(np.int32) if count < 2**31 else shuffled
            # Of every list the round before too: samples are read ahead, and again after a resume.
            while len(self._shuffled) > 2 * (len(self.sizes) + 1):
                self._shuffled.popitem(last=False)
        self._shuffled.move_to_end(key)
        return self._shuffled[key]
