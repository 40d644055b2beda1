"""An untrained MM-ControlNet from a FLUX MODEL: copied blocks and zero outputs, so that it changes nothing yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor

from ....models.dreamsr.config import HEAD_DIM, Injection, MMControlNetConfig, checked_blocks
from ....models.dreamsr.mm_controlnet import PATCH, MMControlNet
from .loader import MMControl, build_control

WIDE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = {"as the model": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# FLUX's own names for what diffusers, and so an MM-ControlNet file, calls otherwise.
EMBEDDERS = {
    "time_text_embed.timestep_embedder": "time_in",
    "time_text_embed.guidance_embedder": "guidance_in",
    "time_text_embed.text_embedder": "vector_in",
}
BLOCK_NAMES = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
FUSED = {
    ("attn.to_q", "attn.to_k", "attn.to_v"): "img_attn.qkv",
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"): "txt_attn.qkv",
}
NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}

Read = Callable[[str], Tensor]


def parse_blocks(text: str, layers: int) -> tuple[int, ...] | None:
    """Block numbers as typed, separated by commas; None for an empty text. Raises ValueError when malformed."""
    if not text.strip():
        return None
    try:
        blocks = [int(part) for part in text.split(",")]
        return checked_blocks(blocks, layers)
    except ValueError as error:
        raise ValueError(
            f"dit_blocks is {text!r}, not {layers} different block numbers from 0 separated by commas. "
            "Leave it empty to spread the control blocks evenly."
        ) from error


def weight_reader(model) -> Read:
    """Weights of a MODEL by their names in the FLUX network, in float32 on the CPU, with its LoRAs and merges.

    From the unpatched weights, whether the model is loaded just now or not; 8-bit weights with scales are expanded.
    """
    names = set(model.model_state_dict("diffusion_model."))

    def read(name: str) -> Tensor:
        key = f"diffusion_model.{name}"
        if key not in names:
            raise ValueError(f"The MODEL has no {name}, so it is not a complete FLUX.1 model.")
        weight, _, convert = comfy.model_patcher.get_key_weight(model.model, key)
        # Where a patched weight is in place, of this MODEL or of another on the same network.
        if key in model.backup:
            weight = model.backup[key].weight
        weight = weight.detach().to("cpu")
        value = (weight if convert is None else convert(weight)).to(torch.float32, copy=True)
        return comfy.lora.calculate_weight(model.patches.get(key, []), value, key)

    return read


def source_dtype(model) -> torch.dtype:
    """The precision the weights are kept in; bfloat16, FLUX's own, for 8-bit ones, which a training cannot start in."""
    weight = comfy.utils.get_attr(model.model, "diffusion_model.img_in.weight")
    dtype = model.model_dtype() if weight.dtype not in WIDE_DTYPES else weight.dtype
    return dtype if dtype in WIDE_DTYPES else torch.bfloat16


def control_config(model, layers: int) -> MMControlNetConfig:
    """Sizes of a control network of `layers` blocks for a MODEL. Raises ValueError when it is not FLUX.1."""
    base = model.model
    network = base.diffusion_model
    if not isinstance(base, comfy.model_base.Flux) or network.patch_size != PATCH or network.params.global_modulation:
        raise ValueError(
            f"An MM-ControlNet is made from a FLUX.1 model; this MODEL is {type(base).__name__}. Load FLUX.1-dev "
            "with Load Diffusion Model."
        )
    params = network.params
    if params.hidden_size // params.num_heads != HEAD_DIM:
        raise ValueError(
            f"FLUX.1 has attention heads of {HEAD_DIM}, this MODEL of {params.hidden_size // params.num_heads}. "
            "Load FLUX.1-dev with Load Diffusion Model."
        )
    hidden = int(params.hidden_size * params.mlp_ratio)
    return MMControlNetConfig(
        hidden_size=params.hidden_size,
        layers=layers,
        in_features=params.out_channels * PATCH**2,
        text_width=params.context_in_dim,
        pooled_width=params.vec_in_dim,
        mlp_hidden=hidden,
        context_hidden=4 * params.hidden_size,
        has_guidance=params.guidance_embed,
    )


def copied(read: Read, config: MMControlNetConfig, blocks: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """What the control network takes over from FLUX, under its own names."""
    # A Fill or control variant reads more after the noisy latent's features.
    yield "x_embedder.weight", read("img_in.weight")[:, : config.in_features].clone()
    yield "x_embedder.bias", read("img_in.bias")
    for leaf in ("weight", "bias"):
        yield f"context_embedder.{leaf}", read(f"txt_in.{leaf}")
        for name, source in EMBEDDERS.items():
            if source == "guidance_in" and not config.has_guidance:
                continue
            yield f"{name}.linear_1.{leaf}", read(f"{source}.in_layer.{leaf}")
            yield f"{name}.linear_2.{leaf}", read(f"{source}.out_layer.{leaf}")
    for layer, block in enumerate(blocks):
        for name, tensor in copied_block(read, f"double_blocks.{block}"):
            yield f"transformer_blocks.{layer}.{name}", tensor


def copied_block(read: Read, source: str) -> Iterator[tuple[str, Tensor]]:
    for leaf in ("weight", "bias"):
        for name, part in BLOCK_NAMES.items():
            yield f"{name}.{leaf}", read(f"{source}.{part}.{leaf}")
        for names, part in FUSED.items():
            for name, rows in zip(names, read(f"{source}.{part}.{leaf}").chunk(3), strict=True):
                yield f"{name}.{leaf}", rows.clone()
    for name, part in NORMS.items():
        yield f"{name}.weight", read(f"{source}.{part}.weight")


def fresh(shapes: dict[str, tuple[int, ...]], seed: int) -> Iterator[tuple[str, Tensor]]:
    """The layers FLUX has no counterpart of: zero where they feed the DiT, Xavier-uniform before that."""
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        value = torch.zeros(shape)
        feeds_dit = name.startswith("controlnet_blocks.") or ".net.2." in name
        if name.endswith(".weight") and not feeds_dit:
            bound = math.sqrt(6 / sum(shape))
            value.uniform_(-bound, bound, generator=generator)
        yield name, value


def initialise_mm_control(
    model, layers: int = 9, dit_blocks: str = "", dtype: torch.dtype | None = None, seed: int = 0
) -> MMControl:
    """An MM-ControlNet of `layers` blocks for a FLUX MODEL; with it the model computes exactly what it did without.

    dit_blocks: the DiT blocks that are copied and acted on, separated by commas; empty to spread them evenly.
    dtype: of the weights, None for the model's own. seed: of the layers that are not copied.
    Raises ValueError when the MODEL is not FLUX.1 or lacks one of the blocks.
    """
    config = control_config(model, layers)
    depth = len(model.model.diffusion_model.double_blocks)
    try:
        blocks = Injection(parse_blocks(dit_blocks, layers)).blocks(layers, depth)
    except ValueError as error:
        raise ValueError(f"The MM-ControlNet cannot be made: {error}") from error
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in MMControlNet(config).state_dict().items()}
    target = source_dtype(model) if dtype is None else dtype
    weights: dict[str, Any] = {name: value.to(target) for name, value in copied(weight_reader(model), config, blocks)}
    weights |= {
        name: value.to(target) for name, value in fresh({k: v for k, v in shapes.items() if k not in weights}, seed)
    }
    misshapen = [name for name, value in weights.items() if tuple(value.shape) != shapes[name]]
    if misshapen:
        raise ValueError(
            f"The MODEL's weights cannot be read as plain tensors ({misshapen[0]} is "
            f"{list(weights[misshapen[0]].shape)}, not {list(shapes[misshapen[0]])}): use a bf16 or fp8 "
            "checkpoint, not GGUF, to initialise from."
        )
    return build_control("untrained MM-ControlNet", config, Injection(blocks, True), weights, {"dtype": target})
