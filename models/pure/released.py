"""Names and shapes of the released backbone's tensors, and their fusion into this package's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

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


def problems(shapes: Mapping[str, Sequence[int]], config: ChameleonConfig) -> list[str]:
    """What keeps tensors of these names and shapes from being the released backbone; empty when nothing does."""
    wanted = released_shapes(config)
    found = {key: tuple(shape) for key, shape in shapes.items() if not key.startswith(IGNORED_PREFIXES)}
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    misshapen = [
        f"{key} is {list(found[key])}, expected {list(shape)}"
        for key, shape in wanted.items()
        if key in found and found[key] != shape
    ]
    listed = []
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            listed.append(f"{what} {', '.join(names[:3])}{more}")
    return listed + misshapen[:3]


def fuse(state_dict: dict[str, Tensor], config: ChameleonConfig) -> dict[str, Tensor]:
    """Released tensors -> a state dict of `Chameleon`.

    Empties `state_dict` on the way, so that one copy of the weights is held, not two. Raises ValueError naming tensors
    that are missing, unexpected or misshapen.
    """
    found = problems({key: value.shape for key, value in state_dict.items()}, config)
    if found:
        raise ValueError("; ".join(found))
    fused: dict[str, Tensor] = {}
    for key in released_shapes(config):
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
    state_dict.clear()
    return fused


def unfuse(state_dict: Mapping[str, Tensor], config: ChameleonConfig) -> dict[str, Tensor]:
    """The reverse of `fuse`: a state dict of `Chameleon` under the released names."""
    out: dict[str, Tensor] = {}
    for key in (key for key in released_shapes(config) if key != HEAD):
        layer, part, kind = split_name(key)
        group = next((target for target, parts in FUSED.items() if part in parts), None)
        if group is None:
            out[key] = state_dict[key]
            continue
        kv = config.num_kv_heads * config.head_dim
        sizes = [config.hidden_size, kv, kv] if len(FUSED[group]) == 3 else [config.intermediate_size] * 2
        out[key] = state_dict[f"{layer}{group}.{kind}"].split(sizes)[FUSED[group].index(part)].contiguous()
    return {**out, HEAD: join_head(state_dict)}


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


def join_head(state_dict: Mapping[str, Tensor]) -> Tensor:
    other, image = state_dict["lm_head.other.weight"], state_dict.get("lm_head.image.weight")
    if image is None:
        return other
    (start, end), _ = IMAGE_RANGES
    half = end - start
    return torch.cat([other[:start], image[:half], other[start:], image[half:]])
