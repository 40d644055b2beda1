"""Chameleon's decoder written out in float64 from a state dict under the released names: one row, no cache.

Nothing of the pack or of transformers. PURE's wiring: norm before each part, one QK-norm row for all heads, no biases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight.double()


def head_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over each head's width, the same for all heads."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * weight.double()[0] + bias.double()[0]


def turn(x: Tensor, theta: float) -> Tensor:
    """Rotary positions of `[H, T, d]`: component i of the first half pairs with i of the second."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1]).double()[:, None] * theta ** -(torch.arange(half).double() / half)
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], dim=-1)


def logits(w: Mapping[str, Tensor], config: Mapping[str, Any], ids: Tensor) -> Tensor:
    """Of ids `[T]`, `[T, vocabulary]`."""
    heads, eps, theta = config["num_attention_heads"], config["rms_norm_eps"], config["rope_theta"]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].double().T

    x = w["model.embed_tokens.weight"][ids].double()
    later = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    for index in range(config["num_hidden_layers"]):
        at = f"model.layers.{index}"
        normed = rms(x, w[f"{at}.input_layernorm.weight"], eps)
        q, k, v = (linear(f"{at}.self_attn.{n}_proj", normed).unflatten(-1, (heads, -1)).transpose(0, 1) for n in "qkv")
        q, k = (
            turn(head_norm(y, w[f"{at}.self_attn.{n}_norm.weight"], w[f"{at}.self_attn.{n}_norm.bias"]), theta)
            for n, y in (("q", q), ("k", k))
        )
        scores = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).masked_fill(later, -torch.inf)
        x = x + linear(f"{at}.self_attn.o_proj", (torch.softmax(scores, dim=-1) @ v).transpose(0, 1).flatten(1))
        normed = rms(x, w[f"{at}.post_attention_layernorm.weight"], eps)
        gate = linear(f"{at}.mlp.gate_proj", normed)
        x = x + linear(f"{at}.mlp.down_proj", gate * torch.sigmoid(gate) * linear(f"{at}.mlp.up_proj", normed))
    return linear("lm_head", rms(x, w["model.norm.weight"], eps))
