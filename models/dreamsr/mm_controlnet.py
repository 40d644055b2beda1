"""DreamSR's MM-ControlNet: two-stream FLUX blocks that steer both streams of a frozen DiT (arXiv 2605.15682).

It reads the LQ latent of a patch and the patch's own prompt. Each of its blocks gives image features, which are added
to the DiT's image stream (eq. 1), and text features, which the DiT's text stream attends to (eq. 2). Tensor names are
those of diffusers' FluxTransformerBlock and FluxControlNetModel. FLUX's blocks, rotation and sinusoid are written out
here, although ComfyUI has them, so that a trainer needs torch alone and a file's names are the network's own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..attention import AttentionFn, scaled_dot_product
from .config import HEAD_DIM, MMControlNetConfig

ROPE_AXES = (16, 56, 56)
"""Channels of a head turned by each position: index of the image, row, column."""
ROPE_THETA = 10000.0
PATCH = 2
SINUSOID_WIDTH = 256


RunBlock = Callable[..., tuple[Tensor, Tensor]]
"""(block, *its arguments) -> its two streams: how a trainer hands in recomputation."""


class ControlFeatures(NamedTuple):
    """What one control block hands to the DiT: M_img of its image stream `[B, N, D]`, its text stream `[B, M, D]`."""

    image: Tensor
    text: Tensor


def sinusoid(value: Tensor) -> Tensor:
    """`[B]` -> `[B, 256]` in float32: cosines, then sines, of 1000 value at frequencies from 1 to 1/10000."""
    half = SINUSOID_WIDTH // 2
    exponents = torch.arange(half, device=value.device, dtype=torch.float32) / half
    angles = 1000.0 * value.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotary_table(text_tokens: int, grid: tuple[int, int], device: Any = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[text_tokens + rows * columns, 64]` in float32 for `grid` (rows, columns) of image tokens.

    Text is at position (0, 0, 0), the image token of row r and column c at (0, r, c).
    """
    rows, columns = (torch.arange(size, device=device, dtype=torch.float32) for size in grid)
    image = torch.zeros(*grid, len(ROPE_AXES), device=device)
    image[..., 1] = rows[:, None]
    image[..., 2] = columns[None, :]
    positions = torch.cat([image.new_zeros(text_tokens, len(ROPE_AXES)), image.flatten(0, 1)])
    angles = [
        positions[:, axis, None] * ROPE_THETA ** (-torch.arange(0, width, 2, device=device).float() / width)
        for axis, width in enumerate(ROPE_AXES)
    ]
    table = torch.cat(angles, dim=-1)
    return table.cos(), table.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the interleaved pairs of x `[B, heads, N, d]` by tables `[N, d / 2]`."""
    cos, sin = rotary
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def in_turn(**layers: nn.Module) -> nn.Sequential:
    """Layers one after another, under their names in a file."""
    return nn.Sequential(OrderedDict(layers))


def embedder(width: int, size: int, operations: Any, **factory) -> nn.Sequential:
    return in_turn(
        linear_1=operations.Linear(width, size, **factory),
        act=nn.SiLU(),
        linear_2=operations.Linear(size, size, **factory),
    )


def modulation(size: int, operations: Any, **factory) -> nn.Sequential:
    """`[B, D]` -> `[B, 6 D]`: shift, scale and gate of a stream's attention, then of its MLP."""
    return in_turn(act=nn.SiLU(), linear=operations.Linear(size, 6 * size, **factory))


def feed_forward(size: int, hidden: int, operations: Any, **factory) -> nn.Sequential:
    first = in_turn(proj=operations.Linear(size, hidden, **factory))
    return in_turn(net=nn.Sequential(first, nn.GELU(approximate="tanh"), operations.Linear(hidden, size, **factory)))


class TimeTextEmbedder(nn.Module):
    """The modulation vector: sum of the embedded timestep, guidance scale and pooled text."""

    def __init__(self, config: MMControlNetConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        layers = {"dtype": dtype, "device": device, "operations": operations}
        size = config.hidden_size
        self.timestep_embedder = embedder(SINUSOID_WIDTH, size, **layers)
        self.guidance_embedder = embedder(SINUSOID_WIDTH, size, **layers) if config.has_guidance else None
        self.text_embedder = embedder(config.pooled_width, size, **layers)

    def forward(self, timestep: Tensor, pooled: Tensor, guidance: Tensor | None) -> Tensor:
        vector = self.timestep_embedder(sinusoid(timestep).to(pooled.dtype)) + self.text_embedder(pooled)
        if self.guidance_embedder is not None and guidance is not None:
            vector = vector + self.guidance_embedder(sinusoid(guidance).to(pooled.dtype))
        return vector


def with_mlp(x: Tensor, mlp: nn.Module, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    return x + gate * mlp(modulate(layer_norm(x), shift, scale))


def split_heads(x: Tensor) -> Tensor:
    return rearrange(x, "b n (h d) -> b h n d", d=HEAD_DIM)


class JointAttention(nn.Module):
    """Attention over text and image tokens together, with projections of their own."""

    def __init__(self, size: int, dtype=None, device=None, operations: Any = nn):
        super().__init__()

        def linear():
            return operations.Linear(size, size, dtype=dtype, device=device)

        def norm():
            return operations.RMSNorm(HEAD_DIM, eps=1e-6, dtype=dtype, device=device)

        self.to_q, self.to_k, self.to_v = linear(), linear(), linear()
        self.add_q_proj, self.add_k_proj, self.add_v_proj = linear(), linear(), linear()
        self.norm_q, self.norm_k = norm(), norm()
        self.norm_added_q, self.norm_added_k = norm(), norm()
        self.to_out = nn.ModuleList([linear()])
        self.to_add_out = linear()

    def forward(
        self, image: Tensor, text: Tensor, rotary: tuple[Tensor, Tensor], attention: AttentionFn
    ) -> tuple[Tensor, Tensor]:
        q = torch.cat(
            [self.norm_added_q(split_heads(self.add_q_proj(text))), self.norm_q(split_heads(self.to_q(image)))], dim=2
        )
        k = torch.cat(
            [self.norm_added_k(split_heads(self.add_k_proj(text))), self.norm_k(split_heads(self.to_k(image)))], dim=2
        )
        v = torch.cat([split_heads(self.add_v_proj(text)), split_heads(self.to_v(image))], dim=2)
        attended = attention(rotate(q, rotary).to(v.dtype), rotate(k, rotary).to(v.dtype), v)
        from_text, from_image = attended.split([text.shape[1], image.shape[1]], dim=1)
        return self.to_out[0](from_image), self.to_add_out(from_text)


class JointBlock(nn.Module):
    """One two-stream block of FLUX."""

    def __init__(self, config: MMControlNetConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        layers = {"dtype": dtype, "device": device, "operations": operations}
        size = config.hidden_size
        self.norm1 = modulation(size, **layers)
        self.norm1_context = modulation(size, **layers)
        self.attn = JointAttention(size, **layers)
        self.ff = feed_forward(size, config.mlp_hidden, **layers)
        self.ff_context = feed_forward(size, config.mlp_hidden, **layers)

    def forward(
        self, image: Tensor, text: Tensor, vector: Tensor, rotary: tuple[Tensor, Tensor], attention: AttentionFn
    ) -> tuple[Tensor, Tensor]:
        """image `[B, N, D]`, text `[B, M, D]`, vector `[B, D]` -> the two streams after the block."""
        shift, scale, gate, *image_mlp = self.norm1(vector).unsqueeze(1).chunk(6, dim=-1)
        text_shift, text_scale, text_gate, *text_mlp = self.norm1_context(vector).unsqueeze(1).chunk(6, dim=-1)
        from_image, from_text = self.attn(
            modulate(layer_norm(image), shift, scale),
            modulate(layer_norm(text), text_shift, text_scale),
            rotary,
            attention,
        )
        image = with_mlp(image + gate * from_image, self.ff, *image_mlp)
        text = with_mlp(text + text_gate * from_text, self.ff_context, *text_mlp)
        if text.dtype == torch.float16:
            # FLUX's text stream leaves the range of half precision in places.
            text = torch.nan_to_num(text, nan=0.0, posinf=65504, neginf=-65504)
        return image, text


class ContextAttention(nn.Module):
    """Context Cross-Attention of eq. 2: queries from the DiT's text stream, keys and values from the control's."""

    def __init__(self, size: int, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.to_q = operations.Linear(size, size, **factory)
        self.to_k = operations.Linear(size, size, **factory)
        self.to_v = operations.Linear(size, size, **factory)
        self.to_out = operations.Linear(size, size, **factory)

    def forward(self, text: Tensor, control: Tensor, attention: AttentionFn) -> Tensor:
        """text `[B, M, D]`, control `[B, K, D]` -> `[B, M, D]`."""
        q, k, v = split_heads(self.to_q(text)), split_heads(self.to_k(control)), split_heads(self.to_v(control))
        return self.to_out(attention(q, k, v))


class MMControlNet(nn.Module):
    """The dual-branch control network. Layers come from `operations`, so a host can hand in casting ones."""

    def __init__(self, config: MMControlNetConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        layers = {"dtype": dtype, "device": device, "operations": operations}
        factory = {"dtype": dtype, "device": device}
        self.config = config
        self.dtype = dtype
        size, count = config.hidden_size, range(config.layers)
        self.x_embedder = operations.Linear(config.in_features, size, **factory)
        self.context_embedder = operations.Linear(config.text_width, size, **factory)
        self.time_text_embed = TimeTextEmbedder(config, **layers)
        self.transformer_blocks = nn.ModuleList([JointBlock(config, **layers) for _ in count])
        self.controlnet_blocks = nn.ModuleList([operations.Linear(size, size, **factory) for _ in count])
        self.context_attn = nn.ModuleList([ContextAttention(size, **layers) for _ in count])
        self.context_mlp = nn.ModuleList([feed_forward(size, config.context_hidden, **layers) for _ in count])

    def streams(
        self,
        latent: Tensor,
        timestep: Tensor,
        text: Tensor,
        pooled: Tensor,
        guidance: Tensor | None = None,
        attention: AttentionFn = scaled_dot_product,
        run_block: RunBlock | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Image `[B, H W / 4, D]` and text `[B, M, D]` streams after each block.

        latent `[B, C, H, W]` in the model's latent space, H and W even: the LQ latent, or the degradation-free one in
        the texture stage. timestep `[B]` in [0, 1]. text `[B, M, text_width]` and pooled `[B, pooled_width]`: the
        local prompt. guidance `[B]`, unscaled. run_block: what calls a block, itself by default.
        """
        grid = (latent.shape[-2] // PATCH, latent.shape[-1] // PATCH)
        image = self.x_embedder(rearrange(latent, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH))
        text_stream = self.context_embedder(text)
        vector = self.time_text_embed(timestep, pooled, guidance)
        rotary = rotary_table(text.shape[1], grid, latent.device)
        for block in self.transformer_blocks:
            inputs = (image, text_stream, vector, rotary, attention)
            image, text_stream = block(*inputs) if run_block is None else run_block(block, *inputs)
            yield image, text_stream

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        text: Tensor,
        pooled: Tensor,
        guidance: Tensor | None = None,
        attention: AttentionFn = scaled_dot_product,
        run_block: RunBlock | None = None,
    ) -> list[ControlFeatures]:
        """What each block hands to the DiT; arguments as for `streams`."""
        streams = self.streams(latent, timestep, text, pooled, guidance, attention, run_block)
        return [
            ControlFeatures(projection(image), stream)
            for projection, (image, stream) in zip(self.controlnet_blocks, streams, strict=True)
        ]

    def text_update(self, layer: int, text: Tensor, control: Tensor, attention: AttentionFn) -> Tensor:
        """M_txt(CrossAttention(Q, K, V)) of eq. 2 for the DiT's text stream `[B, M, D]` and control block `layer`'s."""
        return self.context_mlp[layer](self.context_attn[layer](text, control, attention))


def inject_image(stream: Tensor, residual: Tensor, strength: float) -> Tensor:
    """Eq. 1 at a strength: the residual is added to the first tokens; further ones (reference images) stay."""
    count = residual.shape[1]
    if count == stream.shape[1]:
        return stream + strength * residual
    return torch.cat([stream[:, :count] + strength * residual, stream[:, count:]], dim=1)


def inject_text(stream: Tensor, update: Tensor, strength: float, residual: bool) -> Tensor:
    """Eq. 2 at a strength: added to the stream, or in its place (as printed) in proportion to the strength."""
    kept = stream if residual else (1 - strength) * stream
    return kept + strength * update
