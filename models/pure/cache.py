"""A key-value cache of fixed size, written in place.

Nothing in it moves or grows, and where to write comes from a tensor, so a decoding step over it can be captured in a
CUDA graph. A row's slot numbers are its positions, counted from the first token the row sees. Rows of both guidance
branches go through one forward, yet each branch has a cache of its own: the unconditional branch starts at the image,
so it neither stores nor reads the prompt. At 512 px that is 4.2 + 2.0 GiB in bfloat16 for one image; two rows of equal
length would take 8.4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import ChameleonConfig

SPAN_STEP = 256
"""Attention reads whole steps of this many slots, so that few different shapes occur."""


class KVCache:
    """Keys (after norm and rotation) and values of `rows` sequences: `[layers, rows, KV heads, capacity, head_dim]`."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys = keys
        self.values = values
        self.row_index = torch.arange(keys.shape[1], device=keys.device)[:, None]
        self.span = keys.shape[3]
        """Slots that attention looks at, a plain number the caller keeps above every position in use."""

    @classmethod
    def allocate(cls, config: ChameleonConfig, rows: int, capacity: int, dtype: torch.dtype, device=None) -> KVCache:
        shape = (config.num_layers, rows, config.num_kv_heads, capacity, config.head_dim)
        # Zeros, because slots that are masked still enter attention with weight 0, and 0 * NaN is NaN.
        return cls(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))

    @property
    def rows(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def set_span(self, length: int) -> None:
        """Let attention see at least the first `length` slots. Raises ValueError beyond the capacity."""
        if length > self.capacity:
            raise ValueError(f"{length} tokens do not fit a cache of {self.capacity}")
        self.span = min(self.capacity, -(-length // SPAN_STEP) * SPAN_STEP)

    def mask(self, positions: Tensor) -> Tensor:
        """What queries at positions `[R or 1, T]` may look at: bool `[R or 1, 1, T, span]`."""
        slots = torch.arange(self.span, device=positions.device)
        return slots <= positions[:, None, :, None]

    def write(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v `[R, KV heads, T, d]` at positions `[R or 1, T]`; returns the visible `[R, KV heads, span, d]`."""
        keys, values = self.keys[layer], self.values[layer]
        if positions.shape[0] == 1:
            keys.index_copy_(2, positions[0], k)
            values.index_copy_(2, positions[0], v)
        else:
            keys[self.row_index, :, positions] = k.transpose(1, 2)
            values[self.row_index, :, positions] = v.transpose(1, 2)
        return keys[:, :, : self.span], values[:, :, : self.span]

    def row(self, index: int) -> KVCache:
        """One row as a cache of its own that shares this one's memory."""
        return KVCache(self.keys[:, index : index + 1], self.values[:, index : index + 1])


def bytes_per_token(config: ChameleonConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token of one row: 512 KiB for PURE in bfloat16."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
