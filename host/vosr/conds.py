"""What a sampling run makes of VOSR's vision features: the keys and values of the network's cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import comfy.conds
import comfy.model_management
import torch
from torch import Tensor

from ...models.vosr.dit import ContextKV, VOSRDiT
from ..memory import BoundedMemo

ContextMemo: TypeAlias = BoundedMemo[tuple[Tensor, ContextKV]]
"""By tile and network, the features and what was made of them. Each entry of a CONDITIONING has one for the length of a
run; past its budget, further tiles' contexts are made at every step."""


@dataclass(frozen=True, eq=False)
class Context:
    """The vision features of `items` consecutive batch items."""

    features: Tensor
    """`[b, M, E]`, b a divisor of items: item i has those of i mod b. One token stands for any number of equal ones."""
    memo: ContextMemo
    tile: int | None = None
    """Whose features these are, None for the canvas's."""
    items: int = 1

    def encode(self, network: VOSRDiT, device: torch.device, dtype: torch.dtype, keep: bool) -> list[ContextKV]:
        """Keys and values for the items, in order; remembered when `keep`."""
        # Devices that share a run have a network each.
        key = (self.tile, network)
        found = self.memo.get(key) if keep else None
        if found is None or found[0] is not self.features:
            features = comfy.model_management.cast_to_device(self.features, device, dtype)
            found = (self.features, network.encode_context(features))
            if keep:
                self.memo.put(key, found, found[1].nbytes)
        own = found[1]
        return [own.expand(self.items)] if own.batch == 1 else [own] * (self.items // own.batch)


class VisionCond(comfy.conds.CONDRegular):
    """Vision features of one branch, or of several tiles of it.

    Unlike the host's own conditions, they are not concatenated but listed: each keeps its memo and its number of
    tokens.
    """

    def __init__(self, cond: Sequence[Context]):
        super().__init__(cond)

    def process_cond(self, batch_size: int, **kwargs) -> VisionCond:
        return VisionCond([replace(context, items=batch_size // len(self.cond)) for context in self.cond])

    def can_concat(self, other: comfy.conds.CONDRegular) -> bool:
        return isinstance(other, VisionCond)

    def concat(self, others: Sequence[VisionCond]) -> list[Context]:
        return [context for cond in (self, *others) for context in cond.cond]

    def size(self) -> list[int]:
        return list(self.cond[0].features.shape)
