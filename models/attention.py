"""The attention that networks compute by default, and the form in which a host may hand in its own."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v), each `[B, heads, tokens, head_dim]` -> `[B, query tokens, heads * head_dim]`."""


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, as an AttentionFn."""
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
