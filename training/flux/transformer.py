"""FLUX.1 as diffusers' FluxTransformer2DModel, from a file in FLUX's own names or a folder in diffusers'.

All sizes come from the tensors' shapes, so that no network access and no config file is needed, and small models of the
same kind are read alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.state_dict import require_layers
from .files import WeightFiles, assemble, check, not_a

WHAT = "FLUX.1 model"
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")
MLP_RATIO = 4

EMBEDDERS = {
    "time_text_embed.timestep_embedder": "time_in",
    "time_text_embed.guidance_embedder": "guidance_in",
    "time_text_embed.text_embedder": "vector_in",
}
OUTER = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
} | {
    f"{theirs}.{number}": f"{ours}.{layer}"
    for theirs, ours in EMBEDDERS.items()
    for number, layer in (("linear_1", "in_layer"), ("linear_2", "out_layer"))
}
DOUBLE = {
    "norm1.linear": ("img_mod.lin", 0),
    "norm1_context.linear": ("txt_mod.lin", 0),
    "attn.to_q": ("img_attn.qkv", 0),
    "attn.to_k": ("img_attn.qkv", 1),
    "attn.to_v": ("img_attn.qkv", 2),
    "attn.add_q_proj": ("txt_attn.qkv", 0),
    "attn.add_k_proj": ("txt_attn.qkv", 1),
    "attn.add_v_proj": ("txt_attn.qkv", 2),
    "attn.to_out.0": ("img_attn.proj", 0),
    "attn.to_add_out": ("txt_attn.proj", 0),
    "attn.norm_q": ("img_attn.norm.query_norm", 0),
    "attn.norm_k": ("img_attn.norm.key_norm", 0),
    "attn.norm_added_q": ("txt_attn.norm.query_norm", 0),
    "attn.norm_added_k": ("txt_attn.norm.key_norm", 0),
    "ff.net.0.proj": ("img_mlp.0", 0),
    "ff.net.2": ("img_mlp.2", 0),
    "ff_context.net.0.proj": ("txt_mlp.0", 0),
    "ff_context.net.2": ("txt_mlp.2", 0),
}
SINGLE = {
    "norm.linear": ("modulation.lin", 0),
    "attn.to_q": ("linear1", 0),
    "attn.to_k": ("linear1", 1),
    "attn.to_v": ("linear1", 2),
    "proj_mlp": ("linear1", 3),
    "proj_out": ("linear2", 0),
    "attn.norm_q": ("norm.query_norm", 0),
    "attn.norm_k": ("norm.key_norm", 0),
}
"""diffusers' layers by FLUX's: (layer, which of the parts that FLUX keeps in one, each as wide as the network but the
last)."""
BLOCKS = {"transformer_blocks": ("double_blocks", DOUBLE), "single_transformer_blocks": ("single_blocks", SINGLE)}


@dataclass(frozen=True)
class Source:
    """Where a tensor of diffusers' network lies in a file."""

    name: str
    first: int = 0
    rows: int | None = None
    """None: all from the first on."""
    halves_swapped: bool = False
    """diffusers' final modulation has the scale before the shift, FLUX's after it."""

    def of(self, whole: Tensor) -> Tensor:
        if self.halves_swapped:
            return whole.roll(len(whole) // 2, 0)
        if not self.first and self.rows in (None, len(whole)):
            return whole
        return whole[self.first :][: self.rows].clone()


def flux_source(name: str, hidden: int) -> Source:
    """The place of diffusers' tensor `name` in a file with FLUX's own names, for a network `hidden` wide."""
    layer, _, leaf = name.rpartition(".")
    group, _, rest = layer.partition(".")
    if group not in BLOCKS:
        return Source(f"{OUTER[layer]}.{leaf}", halves_swapped=layer == "norm_out.linear")
    theirs, layers = BLOCKS[group]
    index, _, inner = rest.partition(".")
    target, part = layers[inner]
    if ".norm_" in layer:
        return Source(f"{theirs}.{index}.{target}.scale")
    fused = target.endswith("qkv") or target == "linear1"
    rows = MLP_RATIO * hidden if inner == "proj_mlp" else hidden
    return Source(f"{theirs}.{index}.{target}.{leaf}", part * hidden, rows if fused else None)


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Arguments of FluxTransformer2DModel for tensors in FLUX's names or diffusers'.

    Raises KeyError for the first tensor that a FLUX lacks, ValueError for a shape that makes none.
    """
    own = "img_in.weight" in shapes

    def shape(ours: str, theirs: str) -> tuple[int, ...]:
        return shapes[ours if own else theirs]

    hidden, inputs = shape("img_in.weight", "x_embedder.weight")
    (head,) = shape("double_blocks.0.img_attn.norm.query_norm.scale", "transformer_blocks.0.attn.norm_q.weight")
    if hidden % head:
        raise ValueError(f"a width of {hidden} is no whole number of heads of {head}")
    groups = [pair[0] if own else name for name, pair in BLOCKS.items()]
    return {
        "in_channels": inputs,
        "out_channels": shape("final_layer.linear.weight", "proj_out.weight")[0],
        "num_layers": require_layers(shapes, f"{groups[0]}."),
        "num_single_layers": require_layers(shapes, f"{groups[1]}."),
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "joint_attention_dim": shape("txt_in.weight", "context_embedder.weight")[1],
        "pooled_projection_dim": shape("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight")[1],
        "guidance_embeds": any("guidance_in." in name or "guidance_embedder." in name for name in shapes),
    }


def load_transformer(path: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The frozen FluxTransformer2DModel of a file or folder, in `dtype`; on the meta device from the headers alone.

    Raises FileNotFoundError; ValueError for a file that is no FLUX.1, naming what is missing.
    """
    from diffusers import FluxTransformer2DModel

    # diffusers takes its models' common methods from bases it gives no types for.
    network: Any = FluxTransformer2DModel

    files = WeightFiles(path, "transformer")
    names = files.without_prefix(*PREFIXES)
    shapes = {name: files.shapes[stored] for name, stored in names.items()}
    try:
        config = sizes(shapes)
        with torch.device("meta"):
            expected = network(**config)
    except KeyError as error:
        raise not_a(WHAT, files, f"it lacks {error}") from error
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise not_a(WHAT, files, error) from error
    hidden = config["num_attention_heads"] * config["attention_head_dim"]
    own = "img_in.weight" in shapes
    places = {name: flux_source(name, hidden) if own else Source(name) for name in expected.state_dict()}
    stand_ins = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    used = {place.name for place in places.values()}
    lacking = sorted(used - set(shapes))
    if lacking:
        raise not_a(WHAT, files, f"it lacks {lacking[0]}")
    found = {name: tuple(place.of(stand_ins[place.name]).shape) for name, place in places.items()}
    check(WHAT, files, expected, found | {name: shapes[name] for name in set(shapes) - used})

    def read(name: str) -> Tensor:
        return places[name].of(files.read(names[places[name].name], dtype))

    return assemble(lambda: network(**config), None, read, device, dtype)
