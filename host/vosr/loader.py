"""Loading a VOSR checkpoint into a MODEL the host manages."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.utils
import torch

from ...models.state_dict import require_keys, shapes_of, sizes_of
from ...models.vosr.config import VOSRConfig, check_args, strip_wrapper_prefix
from ...models.vosr.dit import VOSRDiT
from ..files import Reader, load_state_dict_file
from ..precision import WEIGHT_DTYPES
from ..tiling.sampling import Tiling
from ..types import Model
from .files import VOSRFile, find_model, stored_args
from .latent import latent_format_for
from .model import VOSRInfo, VOSRModelConfig

log = logging.getLogger(__name__)

VARIANTS = ("auto", "multi-step", "one-step")

TILING = Tiling(None, weights="narrow gaussian", node="VOSR")
"""Conditionings say what the tiles are, so that samplers and guiders of the host need no further node."""

# Derived or quantisation entries: not weights of the network itself.
OPTIONAL_KEYS = ("feat_rope.freqs_cos", "feat_rope.freqs_sin", ".comfy_quant", ".weight_scale", ".input_scale")

# What the host's own save nodes put before every name.
HOST_PREFIXES = ("model.diffusion_model.", "diffusion_model.")


def without_host_prefix(state_dict: dict[str, Any]) -> dict[str, Any]:
    for prefix in HOST_PREFIXES:
        inner = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        if inner:
            return inner
    return state_dict


def read_config(source: str, state_dict: dict[str, Any]) -> VOSRConfig:
    """The architecture of a state dict. Raises ValueError when it is not a complete VOSR DiT."""
    advice = "Choose a VOSR folder (args.json + checkpoints/ema_model.safetensors) or its ema_model.safetensors."
    with sizes_of("VOSR diffusion model", source, state_dict, advice), torch.device("meta"):
        config = VOSRConfig.from_shapes(shapes_of(state_dict))
        expected = VOSRDiT(config).state_dict()
    require_keys("VOSR diffusion model", source, expected, state_dict, OPTIONAL_KEYS)
    return config


def is_one_step(config: VOSRConfig, args: dict[str, Any], variant: str) -> bool:
    """Whether to treat the model as a one-step student: as told, else by the end-time embedder or args.json."""
    if variant == "auto":
        return config.has_end_time or args.get("distill_type") is not None
    return variant == "one-step"


def load_vosr_model(
    name: str,
    weight_dtype: str = "default",
    variant: str = "auto",
    disable_dynamic: bool = False,
    read: Reader = load_state_dict_file,
) -> Model:
    """The MODEL of a loader choice (see files.model_choices).

    weight_dtype: a key of WEIGHT_DTYPES. variant: one of VARIANTS; only a single file of VOSR 2.0, which has the
    multi-step tensors and no args.json, cannot tell by itself that it is one-step. read: opens the file.
    Raises ValueError for a file that is damaged, not a VOSR model, or at odds with its args.json.
    """
    chosen = find_model(name)
    state_dict, metadata = read(chosen.path)
    args = chosen.args or stored_args(chosen.name, state_dict, metadata)
    try:
        check_args(args)
    except ValueError as error:
        raise ValueError(f"{chosen.name}: in args.json {error}. Take the file published with the weights.") from error
    state_dict = without_host_prefix(strip_wrapper_prefix(state_dict))
    state_dict, metadata = comfy.utils.convert_old_quants(state_dict, "", metadata=metadata)
    config = read_config(chosen.name, state_dict)
    differences = config.disagreements(args)
    if differences:
        raise ValueError(
            f"{chosen.name}: args.json does not belong to these weights ({'; '.join(differences)}). "
            "Put the two files of one release together."
        )
    info = VOSRInfo(chosen.name, config, is_one_step(config, args, variant), args)
    patcher = build_patcher(info, chosen, state_dict, WEIGHT_DTYPES[weight_dtype], disable_dynamic)
    patcher.cached_patcher_init = (load_vosr_model, (name, weight_dtype, variant))
    kind = "one-step" if info.one_step else "multi-step"
    log.info("RealISR: %s %s (%s)", "loaded" if read is load_state_dict_file else "looked at", chosen.path, kind)
    return patcher


def build_patcher(
    info: VOSRInfo, source: VOSRFile, state_dict: dict[str, Any], options: dict[str, Any], disable_dynamic: bool
) -> Model:
    """A MODEL that works in the tiles its conditioning brings.

    Device, precision and casting are chosen as the host does for its own diffusion models.
    """
    management = comfy.model_management
    load_device, offload_device = management.get_torch_device(), management.unet_offload_device()
    model_config = VOSRModelConfig(info, latent_format_for(info.config.latent_channels, info.args))
    model_config.quant_config = comfy.utils.detect_layer_quantization(state_dict, "")
    supported = list(model_config.supported_inference_dtypes)
    quantised = model_config.quant_config is not None
    dtype = options.get("dtype")
    if dtype is None:
        dtype = management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(state_dict),
            supported_dtypes=supported,
            weight_dtype=None if quantised else comfy.utils.weight_dtype(state_dict),
        )
    manual_cast = management.unet_manual_cast(None if quantised else dtype, load_device, supported)
    model_config.set_inference_dtype(dtype, manual_cast, device=load_device)
    model_config.optimizations["fp8"] = options.get("fp8_optimizations", False)

    model = model_config.get_model(state_dict)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    if not management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(state_dict, "", assign=patcher.is_dynamic())
    patcher.add_callback_with_key(comfy.patcher_extension.CallbacksMP.ON_LOAD, "realisr", patch_tables)
    TILING.attach(patcher)
    return patcher


def patch_tables(patcher, device_to: torch.device, *_) -> None:
    """Merges and LoRAs of the blocks' modulation tables, which the host, patching layers only, would pass over."""
    for key in patcher.patches:
        if key.endswith(".scale_shift_table") and key not in patcher.backup:
            patcher.patch_weight_to_device(key, device_to=device_to)
