"""The VOSR network: a latent DiT conditioned on the LQ latent and on vision features (arXiv 2604.03225).

Time runs from 1 (noise) to 0 (clean latent) and is fed unscaled; the network predicts the velocity
v = dx/dt = noise - clean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..attention import AttentionFn, scaled_dot_product
from .config import VOSRConfig

BlockRunner = Callable[..., Tensor]
"""(index, block, tokens, modulation, cos, sin, context, attention) -> tokens; the default calls the block."""


class ContextKV(NamedTuple):
    """Cross-attention keys and values of every block for a run of batch items: `[b, heads, M, d]` each.

    They depend on the vision features alone, so one sampling run needs them once. `keys` is None when
    there is a single token: softmax over one logit is 1, whatever the query.
    """

    keys: list[Tensor] | None
    values: list[Tensor]

    @property
    def batch(self) -> int:
        return self.values[0].shape[0]

    def expand(self, items: int) -> ContextKV:
        """A single item's for `items` of them, as views."""
        if items == self.batch:
            return self
        keys = self.keys and [tensor.expand(items, -1, -1, -1) for tensor in self.keys]
        return ContextKV(keys, [tensor.expand(items, -1, -1, -1) for tensor in self.values])

    @property
    def nbytes(self) -> int:
        tensors = self.values if self.keys is None else [*self.keys, *self.values]
        return sum(tensor.nbytes for tensor in tensors)


def rotary_angles(grid: tuple[int, int], train_grid: int, head_dim: int, device: Any = None) -> Tensor:
    """Angles of axial rotary positions, `[rows * columns, head_dim / 2]` in float32.

    Positions are rescaled to [0, train_grid) whatever the grid; rows turn the first half of the pairs,
    columns the second.
    """
    quarter = head_dim // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, device=device, dtype=torch.float32) / quarter)
    rows, columns = (torch.arange(size, device=device, dtype=torch.float32) / size * train_grid for size in grid)
    shape = (grid[0], grid[1], quarter)
    row_angles = (rows[:, None] * frequencies)[:, None, :].expand(shape)
    column_angles = (columns[:, None] * frequencies)[None, :, :].expand(shape)
    return torch.cat([row_angles, column_angles], dim=-1).flatten(0, 1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the interleaved pairs of x `[B, heads, N, d]` by tables `[N, d]` with each angle twice in a row."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return x * cos + turned * sin


class RotaryTable(nn.Module):
    """Carries the checkpoint's derived table (`[P * P, d]`), the only record of the training grid P."""

    def __init__(self, train_grid: int, head_dim: int, device=None):
        super().__init__()
        self.train_grid = train_grid
        self.head_dim = head_dim
        cos, sin = self.tables((train_grid, train_grid), torch.float32, device)
        self.register_buffer("freqs_cos", cos)
        self.register_buffer("freqs_sin", sin)

    def tables(self, grid: tuple[int, int], dtype, device) -> tuple[Tensor, Tensor]:
        angles = rotary_angles(grid, self.train_grid, self.head_dim, device).repeat_interleave(2, dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class TimeEmbedder(nn.Module):
    """Sinusoid of a time in [0, 1] (cosines first, not scaled by 1000) through a two-layer MLP."""

    frequency_width = 256

    def __init__(self, hidden_size: int, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.mlp = nn.Sequential(
            operations.Linear(self.frequency_width, hidden_size, **factory),
            nn.SiLU(),
            operations.Linear(hidden_size, hidden_size, **factory),
        )

    @classmethod
    def sinusoid(cls, t: Tensor) -> Tensor:
        half = cls.frequency_width // 2
        exponents = torch.arange(half, device=t.device, dtype=torch.float32) / half
        angles = t.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(self.sinusoid(t).to(dtype))


class SelfAttention(nn.Module):
    def __init__(self, config: VOSRConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.heads = config.num_heads
        self.qkv = operations.Linear(config.hidden_size, 3 * config.hidden_size, **factory)
        self.q_norm = operations.RMSNorm(config.head_dim, eps=1e-6, **factory)
        self.k_norm = operations.RMSNorm(config.head_dim, eps=1e-6, **factory)
        self.proj = operations.Linear(config.hidden_size, config.hidden_size, **factory)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: AttentionFn) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads).unbind(0)
        q = rotate(self.q_norm(q), cos, sin)
        k = rotate(self.k_norm(k), cos, sin)
        return self.proj(attention(q, k, v))


class CrossAttention(nn.Module):
    def __init__(self, config: VOSRConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        size = config.hidden_size
        self.heads = config.num_heads
        self.q_linear = operations.Linear(size, size, **factory)
        self.k_linear = operations.Linear(size, size, **factory)
        self.v_linear = operations.Linear(size, size, **factory)
        self.q_norm = operations.RMSNorm(config.head_dim, eps=1e-6, **factory)
        self.k_norm = operations.RMSNorm(config.head_dim, eps=1e-6, **factory)
        self.proj = operations.Linear(size, size, **factory)

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)

    def values(self, context: Tensor) -> Tensor:
        return self._heads(self.v_linear(context))

    def keys(self, context: Tensor) -> Tensor:
        return self.k_norm(self._heads(self.k_linear(context)))

    def forward(self, x: Tensor, keys: Tensor | None, values: Tensor, attention: AttentionFn) -> Tensor:
        """x `[b, N, D]` -> `[b, N, D]`, or `[b, 1, D]` for a single context token, the same for every query."""
        if keys is None:
            return self.proj(rearrange(values, "b h one d -> b one (h d)"))
        q = self.q_norm(self._heads(self.q_linear(x)))
        return self.proj(attention(q, keys, values))


class SwiGLU(nn.Module):
    def __init__(self, config: VOSRConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.w12 = operations.Linear(config.hidden_size, 2 * config.mlp_hidden, **factory)
        self.w3 = operations.Linear(config.mlp_hidden, config.hidden_size, **factory)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class Block(nn.Module):
    def __init__(self, config: VOSRConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        layers = {**factory, "operations": operations}
        # A few kilobytes: kept in float32 so that 8-bit weights do not quantise the modulation.
        self.scale_shift_table = nn.Parameter(torch.empty(6, config.hidden_size, dtype=torch.float32, device=device))
        self.norm1 = operations.RMSNorm(config.hidden_size, eps=1e-6, **factory)
        self.norm2 = operations.RMSNorm(config.hidden_size, eps=1e-6, **factory)
        self.attn = SelfAttention(config, **layers)
        self.mlp = SwiGLU(config, **layers)
        if config.context_width:
            self.cross_attn = CrossAttention(config, **layers)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        cos: Tensor,
        sin: Tensor,
        context: Sequence[tuple[Tensor | None, Tensor]],
        attention: AttentionFn,
    ) -> Tensor:
        """x `[B, N, D]`, modulation `[B, 6, D]`; `context` holds (keys, values) of consecutive batch items."""
        table = self.scale_shift_table.to(device=x.device, dtype=x.dtype)
        rows = (table + modulation).unsqueeze(2).unbind(1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = rows
        x = x + gate_attn * self.attn(modulate(self.norm1(x), shift_attn, scale_attn), cos, sin, attention)
        if context:
            x = self.attend_context(x, context, attention)
        return x + gate_mlp * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))

    def attend_context(self, x: Tensor, context: Sequence[tuple[Tensor | None, Tensor]], attention) -> Tensor:
        """Plain residual: neither norm, modulation nor gate (as in the reference)."""
        parts = x.split([values.shape[0] for _, values in context])
        attended = [
            part + self.cross_attn(part, keys, values, attention)
            for part, (keys, values) in zip(parts, context, strict=True)
        ]
        return attended[0] if len(attended) == 1 else torch.cat(attended)


class PatchEmbed(nn.Module):
    def __init__(self, in_channels: int, config: VOSRConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        patch = config.patch_size
        self.proj = operations.Conv2d(
            in_channels, config.hidden_size, kernel_size=patch, stride=patch, dtype=dtype, device=device
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ContextMLP(nn.Module):
    def __init__(self, config: VOSRConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.fc1 = operations.Linear(config.context_width, config.context_hidden, **factory)
        self.fc2 = operations.Linear(config.context_hidden, config.hidden_size, **factory)

    def forward(self, z: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(z), approximate="tanh"))


class FinalLayer(nn.Module):
    def __init__(self, config: VOSRConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        size = config.hidden_size
        self.norm_final = operations.RMSNorm(size, eps=1e-6, **factory)
        self.linear = operations.Linear(size, config.patch_size**2 * config.latent_channels, **factory)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(size, 2 * size, **factory))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class VOSRDiT(nn.Module):
    """The velocity network. Layers come from `operations`, so a host can hand in casting ones.

    Tensor names are those of the released checkpoints.
    """

    def __init__(self, config: VOSRConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        layers = {"dtype": dtype, "device": device, "operations": operations}
        self.config = config
        self.dtype = dtype
        size = config.hidden_size
        self.x_embedder = PatchEmbed(2 * config.latent_channels, config, **layers)
        self.t_embedder = TimeEmbedder(size, **layers)
        if config.has_end_time:
            self.r_embedder = TimeEmbedder(size, **layers)
        self.feat_rope = RotaryTable(config.train_grid, config.head_dim, device=device)
        self.t_block = nn.Sequential(nn.SiLU(), operations.Linear(size, 6 * size, dtype=dtype, device=device))
        self.blocks = nn.ModuleList([Block(config, **layers) for _ in range(config.depth)])
        self.final_layer = FinalLayer(config, **layers)
        if config.context_width:
            self.layer_norm = operations.LayerNorm(config.context_width, eps=1e-5, dtype=dtype, device=device)
            self.mlp_ca = ContextMLP(config, **layers)

    def encode_context(self, z: Tensor) -> ContextKV:
        """Vision features `[b, M, E]` -> what every block's cross-attention needs of them."""
        tokens = self.mlp_ca(self.layer_norm(z))
        cross = [block.cross_attn for block in self.blocks]
        values = [layer.values(tokens) for layer in cross]
        keys = None if tokens.shape[1] == 1 else [layer.keys(tokens) for layer in cross]
        return ContextKV(keys, values)

    def embed_time(self, t: Tensor, r: Tensor | None, dtype: torch.dtype) -> Tensor:
        """c `[B, D]` of time t and, for students that have it, end time r: e(t) + (t - r) e_r(r)."""
        c = self.t_embedder(t, dtype)
        if r is not None and self.config.has_end_time:
            c = c + (t - r).to(dtype)[:, None] * self.r_embedder(r, dtype)
        return c

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        r: Tensor | None = None,
        z: Tensor | None = None,
        context: Sequence[ContextKV] | None = None,
        attention: AttentionFn = scaled_dot_product,
        run_block: BlockRunner | None = None,
    ) -> Tensor:
        """Velocity `[B, C, H, W]` of x `[B, 2C, H, W]` (LQ latent first, then the noisy latent).

        t, r: `[B]` in [0, 1]; r is ignored by a network without end time. The vision features are given
        either as z `[B, M, E]` or, encoded once, as `context`, whose batches add up to B. H and W are
        multiples of the patch size. `run_block` lets a host wrap or replace blocks.
        """
        patch = self.config.patch_size
        grid = (x.shape[-2] // patch, x.shape[-1] // patch)
        if context is None:
            context = [] if z is None else [self.encode_context(z)]
        c = self.embed_time(t, r, x.dtype)
        modulation = self.t_block(c).unflatten(-1, (6, -1))
        cos, sin = self.feat_rope.tables(grid, x.dtype, x.device)
        tokens = self.x_embedder(x)
        for index, block in enumerate(self.blocks):
            block_context = [(kv.keys and kv.keys[index], kv.values[index]) for kv in context]
            inputs = (tokens, modulation, cos, sin, block_context, attention)
            tokens = block(*inputs) if run_block is None else run_block(index, block, *inputs)
        return self.unpatchify(self.final_layer(tokens, c), grid)

    def unpatchify(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        p = self.config.patch_size
        return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=p, q=p)

    def initialise(self, generator: torch.Generator | None = None) -> VOSRDiT:
        """The reference's initialisation for training from scratch; the network then predicts zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1), generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.RMSNorm | nn.LayerNorm):
                module.reset_parameters()
        embedders = [self.t_embedder, self.r_embedder] if self.config.has_end_time else [self.t_embedder]
        for linear in [layer for e in embedders for layer in (e.mlp[0], e.mlp[2])] + [self.t_block[1]]:
            nn.init.normal_(linear.weight, std=0.02, generator=generator)
        for block in self.blocks:
            nn.init.normal_(block.scale_shift_table, std=self.config.hidden_size**-0.5, generator=generator)
        for linear in (self.final_layer.adaLN_modulation[1], self.final_layer.linear):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        return self
