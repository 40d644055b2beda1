"""PURE's backbone (arXiv 2503.11073): Chameleon's decoder-only transformer over text and image tokens.

Query, key and value projections are one linear layer, and so are gate and up; `released.fuse` makes these weights
from the released ones. The output head is kept in two parts, image tokens and all others, because while an image is
drawn only image tokens can be next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .cache import KVCache
from .config import ChameleonConfig
from .vocabulary import IMAGE_RANGES, IMAGE_TOKENS

QK_NORM_EPS = 1e-5

MaskedAttentionFn = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Softmax attention with scale 1/sqrt(d): q `[R, H, T, d]`, k, v `[R, H, S, d]`, mask -> `[R, T, H * d]`.

mask: bool `[R or 1, 1, T, S]`, True where a query may look; None for everywhere.
"""


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "r h t d -> r t (h d)")


def rotary_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions `[R, T]`, float32 `[R, 1, T, head_dim]`, rounded to `dtype` as when trained."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[:, None, :, None].float() * theta**-exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype).float(), angles.sin().to(dtype).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x `[R, H, T, d]`; the i-th component of the first half pairs with the i-th of the second."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class HeadNorm(nn.Module):
    """Weight and bias of LayerNorm over each head's width, one row per block of heads.

    A few kilobytes: kept in float32 so that 8-bit weights do not quantise them.
    """

    def __init__(self, rows: int, head_dim: int, device=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(rows, head_dim, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.zeros(rows, head_dim, dtype=torch.float32, device=device))

    def per_head(self, heads: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Weight and bias of each head, float32 `[heads, 1, d]`."""
        tables = (table.to(device=device, dtype=torch.float32) for table in (self.weight, self.bias))
        # PURE's single row is not copied: this runs in every layer for every token.
        blocks = (rows[:, None].expand(-1, heads // rows.shape[0], -1) for rows in tables)
        weight, bias = (rearrange(rows, "r n d -> (r n) 1 d") for rows in blocks)
        return weight, bias


class Attention(nn.Module):
    def __init__(self, config: ChameleonConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"bias": config.attention_bias, "dtype": dtype, "device": device}
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv_proj = operations.Linear(config.hidden_size, width, **factory)
        self.o_proj = operations.Linear(config.hidden_size, config.hidden_size, **factory)
        self.q_norm = HeadNorm(config.qk_norm_rows, self.head_dim, device)
        self.k_norm = HeadNorm(config.qk_norm_rows, self.head_dim, device)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x `[R, T, D]` -> q, k (normalised, then rotated), v, each `[R, heads, T, d]` in the dtype of x.

        Norm and rotation are done in float32, on queries and keys together.
        """
        heads = rearrange(self.qkv_proj(x), "r t (h d) -> r h t d", d=self.head_dim)
        qk, v = heads.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        tables = zip(
            self.q_norm.per_head(self.heads, x.device), self.k_norm.per_head(self.kv_heads, x.device), strict=True
        )
        weight, bias = (torch.cat(pair) for pair in tables)
        normed = F.layer_norm(qk.float(), (self.head_dim,), eps=QK_NORM_EPS)
        q, k = (
            rotate(torch.addcmul(bias, normed, weight), cos, sin).to(v.dtype).split([self.heads, self.kv_heads], dim=1)
        )
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attention: MaskedAttentionFn) -> Tensor:
        if self.kv_heads != self.heads:
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (k, v))
        return attention(q, k, v, mask)


class MLP(nn.Module):
    def __init__(self, config: ChameleonConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"bias": config.mlp_bias, "dtype": dtype, "device": device}
        self.gate_up_proj = operations.Linear(config.hidden_size, 2 * config.intermediate_size, **factory)
        self.down_proj = operations.Linear(config.intermediate_size, config.hidden_size, **factory)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Context:
    """What the layers of one forward share: rotary tables, and per group of rows its cache, mask and positions."""

    def __init__(self, config, positions: Tensor, caches: Sequence[KVCache], mask: Tensor | None, dtype, attention):
        self.cos, self.sin = rotary_tables(positions, config.head_dim, config.rope_theta, dtype)
        self.attention: MaskedAttentionFn = attention
        self.caches = caches
        self.sizes = [cache.rows for cache in caches]
        if not caches:
            causal = positions[:, None, None, :] <= positions[:, None, :, None]
            self.masks = [causal if mask is None else mask]
        else:
            shared = positions.shape[0] == 1
            self.positions = [positions] * len(caches) if shared else list(positions.split(self.sizes))
            self.masks = [cache.mask(rows) for cache, rows in zip(caches, self.positions, strict=True)]

    def attend(self, layer: int, module: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.caches:
            return module.attend(q, k, v, self.masks[0], self.attention)
        parts = []
        groups = zip(q.split(self.sizes), k.split(self.sizes), v.split(self.sizes), strict=True)
        for group, (q_rows, k_rows, v_rows) in enumerate(groups):
            keys, values = self.caches[group].write(layer, k_rows, v_rows, self.positions[group])
            parts.append(module.attend(q_rows, keys, values, self.masks[group], self.attention))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Layer(nn.Module):
    def __init__(self, config: ChameleonConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.swin_norm = config.swin_norm
        self.self_attn = Attention(config, **factory, operations=operations)
        self.mlp = MLP(config, **factory, operations=operations)
        self.input_layernorm = operations.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)
        self.post_attention_layernorm = operations.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)

    def attend(self, x: Tensor, index: int, context: Context) -> Tensor:
        q, k, v = self.self_attn.project(x, context.cos, context.sin)
        return self.self_attn.o_proj(context.attend(index, self.self_attn, q, k, v))

    def forward(self, x: Tensor, index: int, context: Context) -> Tensor:
        if self.swin_norm:
            x = x + self.input_layernorm(self.attend(x, index, context))
            return x + self.post_attention_layernorm(self.mlp(x))
        x = x + self.attend(self.input_layernorm(x), index, context)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: ChameleonConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.embed_tokens = operations.Embedding(config.vocab_size, config.hidden_size, **factory)
        layers = [Layer(config, **factory, operations=operations) for _ in range(config.num_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = operations.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)


class Head(nn.Module):
    """Output weights of the image tokens and of all other tokens, each in ascending order of the ids."""

    def __init__(self, config: ChameleonConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"bias": False, "dtype": dtype, "device": device}
        images = IMAGE_TOKENS if config.has_image_vocabulary else 0
        self.other = operations.Linear(config.hidden_size, config.vocab_size - images, **factory)
        self.image = operations.Linear(config.hidden_size, images, **factory) if images else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of the whole vocabulary, float32."""
        other = self.other(hidden).float()
        if self.image is None:
            return other
        image = self.image(hidden).float()
        (start, end), _ = IMAGE_RANGES
        low, high = image.split([end - start, IMAGE_TOKENS - (end - start)], dim=-1)
        return torch.cat([other[..., :start], low, other[..., start:], high], dim=-1)


class Chameleon(nn.Module):
    """Token ids to hidden states, and hidden states to logits."""

    def __init__(
        self,
        config: ChameleonConfig,
        dtype=None,
        device=None,
        operations: Any = nn,
        attention: MaskedAttentionFn = scaled_dot_product,
    ):
        super().__init__()
        self.config = config
        self.attention = attention
        """What computes softmax attention; may be replaced at any time."""
        self.model = Decoder(config, dtype, device, operations)
        self.lm_head = Head(config, dtype, device, operations)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        caches: Sequence[KVCache] = (),
        mask: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Final hidden states `[R, T, D]` of token ids `[R, T]`.

        positions: `[R or 1, T]`, by default 0..T-1. caches: groups of rows, in order; each group's keys and values are
        stored at its positions and its queries see every slot up to their own position. mask: without caches, bool
        `[R or 1, 1, T, T]` of what may be looked at, by default earlier positions. dtype: what to compute in, by
        default the embedding's.
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        x = self.model.embed_tokens(ids)
        x = x if dtype is None else x.to(dtype)
        context = Context(self.config, positions, caches, mask, x.dtype, self.attention)
        for index, layer in enumerate(self.model.layers):
            x = layer(x, index, context)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of the whole vocabulary, float32 `[..., vocab_size]`."""
        return self.lm_head(hidden)

    def image_logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of the image tokens alone, float32 `[..., 16384]` in ascending order of their ids."""
        head = self.lm_head.image
        assert head is not None, "a model without PURE's vocabulary has no image tokens"
        return head(hidden).float()
