"""The order of PURE's training: micro-batches of conversations of similar length, all of them once an epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..engine.draws import Draws

CHUNK = 64
"""Micro-batches' worth of shuffled items that are sorted by length together: enough that neighbours are near."""


class LengthBatches:
    """Which item is sample n: micro-batch m, samples m B .. m B + B - 1, has items of similar length.

    Depends on (seed, n) and the lengths alone. An epoch has every item of ratio 1 once, of ratio r about r times, and
    leaves out what fills no micro-batch.
    """

    def __init__(self, lengths: Sequence[int], ratios: Sequence[float], batch: int, seed: int):
        """lengths, ratios: of each item. Raises ValueError where an epoch would not fill one micro-batch."""
        self.lengths, self.ratios = np.asarray(lengths), np.asarray(ratios, dtype=np.float64)
        self.batch, self.seed = batch, seed
        # Lists have few different ratios; the parts of an epoch beyond whole repeats are counted list by list.
        self.groups = [np.flatnonzero(self.ratios == ratio) for ratio in dict.fromkeys(ratios)]
        items = sum(self.count(group) for group in self.groups)
        self.batches = items // batch
        if not self.batches:
            raise ValueError(f"the conversations give {items} samples an epoch, fewer than a batch of {batch}")
        self.last: tuple[int, np.ndarray] | None = None

    def count(self, group: np.ndarray) -> int:
        """Samples of a group in an epoch."""
        return round(float(self.ratios[group[0]]) * len(group))

    def __len__(self) -> int:
        return self.batches * self.batch

    def __getitem__(self, number: int) -> int:
        """The item of sample `number`, which may run past an epoch."""
        epoch, place = divmod(number, len(self))
        if self.last is None or self.last[0] != epoch:
            self.last = epoch, self.order(epoch)
        return int(self.last[1][place])

    def order(self, epoch: int) -> np.ndarray:
        """Items of an epoch in the order of their samples."""
        draws = Draws((self.seed, 1), epoch).numpy
        drawn = []
        for group in self.groups:
            whole, further = divmod(self.count(group), len(group))
            drawn += [group] * whole + [draws.permutation(group)[:further]]
        items = draws.permutation(np.concatenate(drawn))[: len(self)]
        chunk = CHUNK * self.batch
        parts = [items[start : start + chunk] for start in range(0, len(items), chunk)]
        rows = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in parts])
        return draws.permutation(rows.reshape(self.batches, self.batch)).reshape(-1)
