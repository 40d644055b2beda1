"""An untrained MM-ControlNet from a FLUX MODEL: copied blocks and zero outputs, so that it changes nothing yet."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import comfy.lora
import comfy.model_base
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor

from ....models.dreamsr.config import HEAD_DIM, Injection, MMControlNetConfig, checked_blocks
from ....models.dreamsr.mm_controlnet import PATCH, MMControlNet
from ....models.dreamsr.start import copied_name, untrained
from ...families import model_in_words
from ...types import Model
from .loader import MMControl, build_control

WIDE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = {"as the model": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

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


def weight_reader(model: Model) -> Read:
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


def source_dtype(model: Model) -> torch.dtype:
    """The precision the weights are kept in; bfloat16, FLUX's own, for 8-bit ones, which a training cannot start in."""
    weight = comfy.utils.get_attr(model.model, "diffusion_model.img_in.weight")
    dtype = model.model_dtype() if weight.dtype not in WIDE_DTYPES else weight.dtype
    return dtype if dtype in WIDE_DTYPES else torch.bfloat16


def control_config(model: Model, layers: int) -> MMControlNetConfig:
    """Sizes of a control network of `layers` blocks for a MODEL. Raises ValueError when it is not FLUX.1."""
    base = model.model
    network = base.diffusion_model
    if not isinstance(base, comfy.model_base.Flux) or network.patch_size != PATCH or network.params.global_modulation:
        raise ValueError(
            f"An MM-ControlNet is made from a FLUX.1 model; {model_in_words(model)} is connected to model. Load "
            "FLUX.1-dev with Load Diffusion Model."
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


def initial_weights(
    read: Read, config: MMControlNetConfig, blocks: tuple[int, ...], seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a control network by name: FLUX's where it has a counterpart, else untrained."""
    with torch.device("meta"):
        expected = MMControlNet(config).state_dict()
    # Both write FLUX in diffusers' names, which the host knows for its LoRAs.
    flux_names = comfy.utils.flux_to_diffusers({"depth": 1 + max(blocks), "hidden_size": config.hidden_size})
    generator = torch.Generator().manual_seed(seed)
    for name, value in expected.items():
        source = flux_names.get(copied_name(name, blocks))
        if source is None:
            yield name, untrained(name, tuple(value.shape), generator)
            continue
        key, (_, start, length) = (source, (0, 0, None)) if isinstance(source, str) else source
        weight = read(key)[start:][:length]
        # A Fill or control variant reads more after the noisy latent's features.
        weight = weight[:, : config.in_features] if name == "x_embedder.weight" else weight
        if weight.shape != value.shape:
            raise ValueError(
                f"The MODEL's weights cannot be read as plain tensors ({key} gives {list(weight.shape)} for {name}, "
                f"not {list(value.shape)}): use a bf16 or fp8 checkpoint, not GGUF, to initialise from."
            )
        yield name, weight


def initialise_mm_control(
    model: Model, layers: int = 9, dit_blocks: str = "", dtype: torch.dtype | None = None, seed: int = 0
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
    target = source_dtype(model) if dtype is None else dtype
    # Fused weights are read once for their three parts, in turn with their bias.
    read = functools.lru_cache(maxsize=2)(weight_reader(model))
    weights = {
        name: value.to(target, copy=True, memory_format=torch.contiguous_format)
        for name, value in initial_weights(read, config, blocks, seed)
    }
    return build_control("untrained MM-ControlNet", config, Injection(blocks, True), weights, {"dtype": target})
