"""Small checkpoints with random weights, made from a seed: real file layouts at sizes a CPU test can run.

Each function returns a state dict under the names of the released files; save it with `safetensors` into the host's
folder and load it through the host's own loaders. No weight is zero, so that every part shows in the output.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = Iterator[tuple[str, tuple[int, ...]]]
StateDict = dict[str, Tensor]


def fill(shapes: Shapes, seed: int, dtype: torch.dtype = torch.float32) -> StateDict:
    """Random weights that keep activations near unit scale: 1/sqrt(fan in) for matrices and kernels, around 1 for
    norm scales, small for biases and embeddings."""
    generator = torch.Generator().manual_seed(seed)
    state_dict = {}
    for name, shape in shapes:
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            values *= max(1, values[0].numel()) ** -0.5
        elif name.endswith((".bias", "_token")):
            values *= 0.02
        else:
            values = 1 + 0.1 * values
        state_dict[name] = values.to(dtype)
    return state_dict


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def conv(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    yield f"{name}.weight", (outputs, inputs, kernel, kernel)
    yield f"{name}.bias", (outputs,)


def norm(name: str, size: int) -> Shapes:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


# --- FLUX ------------------------------------------------------------------------------------------------------------

FLUX_HEAD_DIM = 128
FLUX_LATENT_FEATURES = 64
FLUX_FILL_FEATURES = 384


def flux(
    seed: int = 0,
    *,
    fill_model: bool = False,
    heads: int = 2,
    double_blocks: int = 3,
    single_blocks: int = 3,
    context_width: int = 64,
    pooled_width: int = 32,
    guidance: bool = True,
) -> StateDict:
    """FLUX.1 (or FLUX.1 Fill) under its own names; UNETLoader reads every size off the tensors.

    Conditioning for it: tokens `[B, N, context_width]`, pooled_output `[B, >= pooled_width]`. Latents have 16
    channels; Fill reads 96 x 4 features: noise, masked image and the 8 x 8 mask.
    """
    inputs = FLUX_FILL_FEATURES if fill_model else FLUX_LATENT_FEATURES
    return fill(flux_shapes(inputs, heads, double_blocks, single_blocks, context_width, pooled_width, guidance), seed)


def flux_shapes(
    inputs: int,
    heads: int,
    double_blocks: int,
    single_blocks: int,
    context_width: int,
    pooled_width: int,
    guidance: bool,
) -> Shapes:
    size = heads * FLUX_HEAD_DIM
    yield from linear("img_in", inputs, size)
    yield from linear("txt_in", context_width, size)
    embedders = {"time_in": 256, "vector_in": pooled_width} | ({"guidance_in": 256} if guidance else {})
    for name, width in embedders.items():
        yield from linear(f"{name}.in_layer", width, size)
        yield from linear(f"{name}.out_layer", size, size)
    for block in (f"double_blocks.{index}" for index in range(double_blocks)):
        for stream in ("img", "txt"):
            yield from linear(f"{block}.{stream}_mod.lin", size, 6 * size)
            yield from linear(f"{block}.{stream}_attn.qkv", size, 3 * size)
            yield from linear(f"{block}.{stream}_attn.proj", size, size)
            yield f"{block}.{stream}_attn.norm.query_norm.scale", (FLUX_HEAD_DIM,)
            yield f"{block}.{stream}_attn.norm.key_norm.scale", (FLUX_HEAD_DIM,)
            yield from linear(f"{block}.{stream}_mlp.0", size, 4 * size)
            yield from linear(f"{block}.{stream}_mlp.2", 4 * size, size)
    for block in (f"single_blocks.{index}" for index in range(single_blocks)):
        yield from linear(f"{block}.modulation.lin", size, 3 * size)
        yield from linear(f"{block}.linear1", size, 7 * size)
        yield from linear(f"{block}.linear2", 5 * size, size)
        yield f"{block}.norm.query_norm.scale", (FLUX_HEAD_DIM,)
        yield f"{block}.norm.key_norm.scale", (FLUX_HEAD_DIM,)
    yield from linear("final_layer.adaLN_modulation.1", size, 2 * size)
    yield from linear("final_layer.linear", size, FLUX_LATENT_FEATURES)


# --- autoencoders ----------------------------------------------------------------------------------------------------


def autoencoder_kl(seed: int = 0, *, latent_channels: int = 4, decoder_width: int = 32) -> StateDict:
    """An SD-style AutoencoderKL under its original names, for VAELoader; 8x, values in half precision (about 70 MB).

    The host fixes the encoder at width 128 and reads the decoder's width off the file, so that only the decoder can
    be small. `taesd` is the light one.
    """
    return fill(autoencoder_kl_shapes(latent_channels, 128, decoder_width), seed, torch.float16)


def autoencoder_kl_shapes(latent_channels: int, encoder_width: int, decoder_width: int) -> Shapes:
    multipliers = (1, 2, 4, 4)
    widths = [encoder_width * m for m in multipliers]
    yield from conv("encoder.conv_in", 3, widths[0], 3)
    for level, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False)):
        for block in range(2):
            yield from resnet(f"encoder.down.{level}.block.{block}", before if block == 0 else width, width)
        if level < 3:
            yield from conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    yield from middle("encoder.mid", widths[-1])
    yield from norm("encoder.norm_out", widths[-1])
    yield from conv("encoder.conv_out", widths[-1], 2 * latent_channels, 3)
    yield from conv("quant_conv", 2 * latent_channels, 2 * latent_channels, 1)
    yield from conv("post_quant_conv", latent_channels, latent_channels, 1)
    widths = [decoder_width * m for m in multipliers]
    yield from conv("decoder.conv_in", latent_channels, widths[-1], 3)
    yield from middle("decoder.mid", widths[-1])
    for level, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
        for block in range(3):
            yield from resnet(f"decoder.up.{level}.block.{block}", before if block == 0 else width, width)
        if level > 0:
            yield from conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
    yield from norm("decoder.norm_out", widths[0])
    yield from conv("decoder.conv_out", widths[0], 3, 3)


def resnet(name: str, before: int, width: int) -> Shapes:
    yield from norm(f"{name}.norm1", before)
    yield from conv(f"{name}.conv1", before, width, 3)
    yield from norm(f"{name}.norm2", width)
    yield from conv(f"{name}.conv2", width, width, 3)
    if before != width:
        yield from conv(f"{name}.nin_shortcut", before, width, 1)


def middle(name: str, width: int) -> Shapes:
    yield from resnet(f"{name}.block_1", width, width)
    yield from norm(f"{name}.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from conv(f"{name}.attn_1.{part}", width, width, 1)
    yield from resnet(f"{name}.block_2", width, width)


def taesd(seed: int = 0, *, latent_channels: int = 16) -> StateDict:
    """A TAESD autoencoder, for VAELoader: 8x, light on a CPU; 16 channels fit FLUX, 4 fit SD."""
    return fill(taesd_shapes(latent_channels), seed)


def taesd_shapes(latent_channels: int) -> Shapes:
    # Layer numbers are positions in two nn.Sequential: convolutions, three-convolution blocks, activations.
    yield from conv("taesd_encoder.0", 3, 64, 3)
    for stage in range(4):
        first = 1 if stage == 0 else 4 * stage - 1
        if stage:
            yield f"taesd_encoder.{first - 1}.weight", (64, 64, 3, 3)
        for block in range(1 if stage == 0 else 3):
            yield from taesd_block(f"taesd_encoder.{first + block}")
    yield from conv("taesd_encoder.14", 64, latent_channels, 3)
    yield from conv("taesd_decoder.1", latent_channels, 64, 3)
    for stage in range(3):
        first = 3 + 5 * stage
        for block in range(3):
            yield from taesd_block(f"taesd_decoder.{first + block}")
        yield f"taesd_decoder.{first + 4}.weight", (64, 64, 3, 3)
    yield from taesd_block("taesd_decoder.18")
    yield from conv("taesd_decoder.19", 64, 3, 3)


def taesd_block(name: str) -> Shapes:
    for layer in (0, 2, 4):
        yield from conv(f"{name}.conv.{layer}", 64, 64, 3)


# --- DINOv2 ----------------------------------------------------------------------------------------------------------


def dinov2(seed: int = 0, *, width: int = 24, depth: int = 4) -> StateDict:
    """DINOv2 in the names of the torch hub files: patch 14, positions for 518 px (37 x 37), no registers."""
    return fill(dinov2_shapes(width, depth), seed)


def dinov2_shapes(width: int, depth: int) -> Shapes:
    yield "cls_token", (1, 1, width)
    yield "mask_token", (1, width)
    yield "pos_embed", (1, 1 + 37 * 37, width)
    yield from conv("patch_embed.proj", 3, width, 14)
    for block in (f"blocks.{index}" for index in range(depth)):
        yield from norm(f"{block}.norm1", width)
        yield from linear(f"{block}.attn.qkv", width, 3 * width)
        yield from linear(f"{block}.attn.proj", width, width)
        yield f"{block}.ls1.gamma", (width,)
        yield from norm(f"{block}.norm2", width)
        yield from linear(f"{block}.mlp.fc1", width, 4 * width)
        yield from linear(f"{block}.mlp.fc2", 4 * width, width)
        yield f"{block}.ls2.gamma", (width,)
    yield from norm("norm", width)


def dinov2_hf(hub: StateDict) -> StateDict:
    """The same network under the names of transformers' Dinov2Model."""
    names = {
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    parts = {
        "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "norm1": "norm1",
        "norm2": "norm2",
    }
    renamed = {}
    for name, tensor in hub.items():
        if name in names:
            renamed[names[name]] = tensor
            continue
        _, index, part = name.split(".", 2)
        layer = f"encoder.layer.{index}"
        if part.startswith("attn.qkv."):
            leaf = part.rpartition(".")[2]
            for role, values in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"{layer}.attention.attention.{role}.{leaf}"] = values.clone()
            continue
        stem = next(stem for stem in parts if part.startswith(stem))
        renamed[f"{layer}.{parts[stem]}{part[len(stem) :]}"] = tensor
    return renamed


# --- VOSR ------------------------------------------------------------------------------------------------------------


def vosr_config(**sizes: Any):
    """A VOSRConfig that runs in milliseconds; keyword arguments override its sizes."""
    from realisr.models.vosr.config import VOSRConfig

    small = {
        "latent_channels": 4,
        "hidden_size": 64,
        "depth": 3,
        "num_heads": 2,
        "mlp_hidden": 170,
        "context_width": 24,
        "context_hidden": 192,
        "train_grid": 8,
    }
    return VOSRConfig(**(small | sizes))


def vosr(config, seed: int = 0) -> StateDict:
    """A VOSR DiT of these sizes. Its rotary tables are the derived ones."""
    from realisr.models.vosr.dit import VOSRDiT

    network = VOSRDiT(config)
    derived = {name: table.clone() for name, table in network.named_buffers()}
    weights = ((name, tuple(value.shape)) for name, value in network.named_parameters())
    return fill(weights, seed) | derived


def vosr_args(config) -> dict[str, Any]:
    """The args.json that goes with such a network, under the keys of the released ones."""
    return {
        "dim": config.hidden_size,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": 4,
        "patch_size": config.patch_size,
        "enc_dim": config.context_width,
        "encdim_ratio": 3,
        "resolution": config.train_grid * config.patch_size * 8,
        "ae_type": "sd2" if config.latent_channels == 4 else "qwen",
        "enc_type": "dinov2b",
        "dinov2_size": 448,
        "layer_dinov2b_list": [2],
        "infer_steps": 1 if config.has_end_time else 25,
        "cfg_scale": 0.5 if config.has_end_time else -0.5,
        "weak_cond_strength_aelq_list": [0.05, 0.25],
    } | ({"auxiliary_time_cond": True, "distill_type": "rcgm"} if config.has_end_time else {})


def save_vosr_folder(folder: Path, config, seed: int = 0) -> Path:
    """A folder as released: args.json and checkpoints/ema_model.safetensors."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps(vosr_args(config), indent=2), encoding="utf-8")
    save_file(vosr(config, seed), folder / "checkpoints" / "ema_model.safetensors")
    return folder


# --- VICR ------------------------------------------------------------------------------------------------------------


def vision_context_bridge(
    seed: int = 0,
    *,
    embedding: int = 768,
    hidden: int = 96,
    width: int = 256,
    prefix: str = "",
    scale_shape: tuple[int, ...] = (),
) -> StateDict:
    """A Vision-Context Bridge; width 256 goes with `flux()` of two heads, whose modulation vector is that wide."""
    state_dict = fill(bridge_shapes(embedding, hidden, width), seed)
    return {prefix + name: value for name, value in (state_dict | {"scale": torch.full(scale_shape, 0.7)}).items()}


def bridge_shapes(embedding: int, hidden: int, width: int) -> Shapes:
    yield from norm("norm", embedding)
    yield from linear("proj_in", embedding, hidden)
    yield from linear("proj_out", hidden, width)


FLUX_DIFFUSERS_BLOCKS = {
    "double_blocks": (
        "transformer_blocks",
        {
            "img_mod.lin": "norm1.linear",
            "txt_mod.lin": "norm1_context.linear",
            "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "img_attn.proj": "attn.to_out.0",
            "txt_attn.proj": "attn.to_add_out",
            "img_attn.norm.query_norm": "attn.norm_q",
            "img_attn.norm.key_norm": "attn.norm_k",
            "txt_attn.norm.query_norm": "attn.norm_added_q",
            "txt_attn.norm.key_norm": "attn.norm_added_k",
            "img_mlp.0": "ff.net.0.proj",
            "img_mlp.2": "ff.net.2",
            "txt_mlp.0": "ff_context.net.0.proj",
            "txt_mlp.2": "ff_context.net.2",
        },
    ),
    "single_blocks": (
        "single_transformer_blocks",
        {
            "modulation.lin": "norm.linear",
            "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
            "linear2": "proj_out",
            "norm.query_norm": "attn.norm_q",
            "norm.key_norm": "attn.norm_k",
        },
    ),
}
FLUX_DIFFUSERS_NAMES = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
} | {
    f"{ours}.{layer}": f"time_text_embed.{theirs}.{number}"
    for ours, theirs in (
        ("time_in", "timestep_embedder"),
        ("guidance_in", "guidance_embedder"),
        ("vector_in", "text_embedder"),
    )
    for layer, number in (("in_layer", "linear_1"), ("out_layer", "linear_2"))
}


def flux_diffusers(flux_weights: StateDict) -> StateDict:
    """FLUX weights under the names of diffusers' FluxTransformer2DModel."""
    renamed = {}
    for name, tensor in flux_weights.items():
        stem, _, leaf = name.rpartition(".")
        leaf = "weight" if leaf == "scale" else leaf
        group, _, rest = stem.partition(".")
        if group not in FLUX_DIFFUSERS_BLOCKS:
            # diffusers' final layer has scale before shift.
            rows = tensor.roll(len(tensor) // 2, 0) if stem == "final_layer.adaLN_modulation.1" else tensor
            renamed[f"{FLUX_DIFFUSERS_NAMES[stem]}.{leaf}"] = rows
            continue
        blocks, names = FLUX_DIFFUSERS_BLOCKS[group]
        index, _, part = rest.partition(".")
        targets = names[part] if isinstance(names[part], tuple) else (names[part],)
        width = len(tensor) // 7 if len(targets) == 4 else len(tensor) // len(targets)
        sizes = [width] * min(len(targets), 3) + [4 * width] * (len(targets) - 3)
        for target, rows in zip(targets, tensor.split(sizes), strict=True):
            renamed[f"{blocks}.{index}.{target}.{leaf}"] = rows.clone()
    return renamed
