"""Names and shapes of the released backbone's tensors, and their fusion into this package's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..state_dict import require_keys
from .config import ChameleonConfig
from .vocabulary import IMAGE_RANGES

IGNORED_PREFIXES = ("model.vqmodel.",)
"""Chameleon's own image encoder, which PURE does not use; a folder may or may not hold it."""

HEAD = "lm_head.weight"
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
QK_NORMS = ("q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias")


def linear_shapes(name: str, rows: int, columns: int, bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (rows, columns)}
    return {**shapes, f"{name}.bias": (rows,)} if bias else shapes


def released_shapes(config: ChameleonConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor a released folder has for a configuration, without the ignored ones."""
    hidden, kv = config.hidden_size, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index in range(config.num_layers):
        layer = f"model.layers.{index}"
        for part, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            shapes |= linear_shapes(f"{layer}.self_attn.{part}_proj", rows, hidden, config.attention_bias)
        shapes |= {f"{layer}.self_attn.{norm}": (config.qk_norm_rows, config.head_dim) for norm in QK_NORMS}
        for part in ("gate", "up"):
            shapes |= linear_shapes(f"{layer}.mlp.{part}_proj", config.intermediate_size, hidden, config.mlp_bias)
        shapes |= linear_shapes(f"{layer}.mlp.down_proj", hidden, config.intermediate_size, config.mlp_bias)
        shapes |= {f"{layer}.input_layernorm.weight": (hidden,), f"{layer}.post_attention_layernorm.weight": (hidden,)}
    return {**shapes, "model.norm.weight": (hidden,), HEAD: (config.vocab_size, hidden)}


def with_stored_norms(config: ChameleonConfig, shapes: Mapping[str, Sequence[int]]) -> ChameleonConfig:
    """The configuration with as many QK-norm rows as the file stores.

    transformers' own class saves one row per head where the reference saves one per block of heads.
    """
    stored = shapes.get("model.layers.0.self_attn.q_norm.weight")
    if stored is None or config.num_kv_heads != config.num_heads or stored[0] != config.num_heads:
        return config
    return replace(config, qk_norm_rows=stored[0])


def fuse(state_dict: dict[str, Tensor], config: ChameleonConfig, source: str = "the state dict") -> dict[str, Tensor]:
    """Released tensors -> a state dict of `Chameleon`.

    Empties `state_dict` on the way, so that one copy of the weights is held, not two. Raises ValueError naming `source`
    and tensors that are missing, unexpected or misshapen.
    """
    for key in [key for key in state_dict if key.startswith(IGNORED_PREFIXES)]:
        del state_dict[key]
    expected = {key: torch.empty(shape, device="meta") for key, shape in released_shapes(config).items()}
    require_keys("backbone as its config.json states it", source, expected, state_dict)
    fused: dict[str, Tensor] = {}
    for key in expected:
        if key not in state_dict:
            continue
        layer, part, kind = split_name(key)
        group = next((target for target, parts in FUSED.items() if part in parts), None)
        if key == HEAD:
            fused |= split_head(state_dict.pop(key), config)
        elif group is None:
            fused[key] = state_dict.pop(key)
        else:
            pieces = [state_dict.pop(f"{layer}{piece}.{kind}") for piece in FUSED[group]]
            fused[f"{layer}{group}.{kind}"] = torch.cat(pieces)
    return fused


def split_name(key: str) -> tuple[str, str, str]:
    """'model.layers.3.mlp.up_proj.weight' -> ('model.layers.3.', 'mlp.up_proj', 'weight')."""
    parts = key.split(".")
    if parts[:2] != ["model", "layers"]:
        return "", ".".join(parts[:-1]), parts[-1]
    return ".".join(parts[:3]) + ".", ".".join(parts[3:-1]), parts[-1]


def split_head(weight: Tensor, config: ChameleonConfig) -> dict[str, Any]:
    if not config.has_image_vocabulary:
        return {"lm_head.other.weight": weight}
    (start, end), (further, stop) = IMAGE_RANGES
    return {
        "lm_head.other.weight": torch.cat([weight[:start], weight[end:further]]),
        "lm_head.image.weight": torch.cat([weight[start:end], weight[further:stop]]),
    }
