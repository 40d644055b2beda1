"""Scores of earlier runs, kept by what was scored: choosing another candidate computes none of them again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor

LIMIT = 4096
"""Scores that are kept: numbers, no images."""


class KeptScores:
    """Scores by key; beyond `limit` the one that was not asked for the longest is dropped."""

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self._scores: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scores)

    def recall(self, key: Hashable) -> float | None:
        """The score, or None where none is kept."""
        if key in self._scores:
            self._scores.move_to_end(key)
        return self._scores.get(key)

    def keep(self, key: Hashable, score: float) -> None:
        self._scores[key] = score
        self._scores.move_to_end(key)
        while len(self._scores) > self.limit:
            self._scores.popitem(last=False)


def content_of(image: Tensor) -> str:
    """A name for what metrics see of an image `[H, W, C]`: its size and its colours, to the bit. 32 letters."""
    colours = image[..., :3].float().cpu().contiguous()
    digest = hashlib.blake2b(repr(list(colours.shape)).encode(), digest_size=16)
    digest.update(colours.numpy())
    return digest.hexdigest()
