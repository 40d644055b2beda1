"""Loading PURE's released files into models the host manages."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from torch import Tensor

from ...models.pure.config import ChameleonConfig
from ...models.pure.released import IGNORED_PREFIXES, fuse, released_shapes, with_stored_norms
from ...models.pure.transformer import Chameleon
from ...models.pure.vocabulary import Vocabulary, check_special_names
from ...models.pure.vqgan import VQGAN, check_released
from ...models.state_dict import shapes_of
from ...services.model_catalogue import VQ_FILE
from ..files import load_state_dict_file
from ..precision import WEIGHT_DTYPES
from .files import VQ_AUTO, WHERE_FROM, RestorerFiles, find_restorer, find_vqgan
from .model import ARRestorer, Backbone
from .tokenizer import TextTokenizer

log = logging.getLogger(__name__)

AUTO = "auto"
WEIGHT_CHOICES = (AUTO, "bf16", "fp16", "fp32", "fp8_e4m3fn", "fp8_e4m3fn_fast")
"""What the weights may be kept in; fp8 is of the layers' matrices, with a scale each."""

FP8 = torch.float8_e4m3fn
COMPUTE_DTYPES = [torch.bfloat16, torch.float32]
"""What the host may choose from by itself: the released weights are bfloat16, whose range half precision lacks."""

STORED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""What a file's weights may be: a quantised one would need its scales."""

CACHES = 7 * 2**30
"""Bytes of the caches of one image of 512 pixels in bfloat16."""

SHARE_OF_MEMORY = 0.85

QUANTISED = ("qkv_proj.weight", "o_proj.weight", "gate_up_proj.weight", "down_proj.weight")
EXACT = ("q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias")
"""A few numbers per layer that always stay in float32."""


def load_ar_restorer(name: str, vq_name: str = VQ_AUTO, weight_dtype: str = AUTO) -> ARRestorer:
    """The restorer of two loader choices. weight_dtype: one of WEIGHT_CHOICES.

    Raises ValueError for files that are absent, damaged or not PURE's.
    """
    files = find_restorer(name)
    vq_file = find_vqgan(vq_name, files.folder)
    config = read_config(files)
    tokenizer = TextTokenizer(files.tokenizer)
    vocabulary = read_vocabulary(files, tokenizer)
    vqgan = load_vqgan(vq_file)
    backbone, dtype = load_backbone(files, config, weight_dtype)
    backbone.cached_patcher_init = (_backbone_again, (name, weight_dtype))
    log.info("RealISR: loaded %s (%s, image codes by %s) and %s", name, weight_dtype, vocabulary.source, vq_file.name)
    return ARRestorer(name, config, backbone, vqgan, tokenizer, vocabulary, dtype)


def _backbone_again(name: str, weight_dtype: str, disable_dynamic: bool = False) -> ModelPatcher:
    files = find_restorer(name)
    return load_backbone(files, read_config(files), weight_dtype, disable_dynamic)[0]


def _vqgan_again(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    return load_vqgan(path, disable_dynamic)


def read_config(files: RestorerFiles) -> ChameleonConfig:
    """The architecture. Raises ValueError naming the folder when it is not PURE's."""
    try:
        config = ChameleonConfig.from_json(files.config)
        config.require_image_vocabulary()
    except ValueError as error:
        raise ValueError(f"{files.name} is not a PURE model: {error}") from error
    return config


def read_vocabulary(files: RestorerFiles, tokenizer: TextTokenizer) -> Vocabulary:
    """Which token is which image code. Raises ValueError when the special tokens are not PURE's."""
    names, named = tokenizer.names, files.config.get("vocabulary_map")
    try:
        check_special_names(names)
        return Vocabulary.find([("tokenizer.json", names), ("config.json", named if isinstance(named, dict) else {})])
    except ValueError as error:
        raise ValueError(
            f"{files.name}: {error}. Take tokenizer.json from the same place as the weights ({WHERE_FROM})."
        ) from error


# --- transformer -----------------------------------------------------------------------------------------------------


def read_shards(files: RestorerFiles) -> dict[str, Tensor]:
    """All tensors of the backbone. Safetensors are mapped, not read, so this holds no copy of the weights.

    Raises ValueError naming a shard that is damaged or lacks what the index promises.
    """
    tensors: dict[str, Tensor] = {}
    for shard in files.shards:
        content, _ = load_state_dict_file(shard)
        promised = [key for key, file in files.index.items() if file == shard.name]
        absent = [key for key in promised if key not in content and not key.startswith(IGNORED_PREFIXES)]
        if absent:
            raise ValueError(
                f"{shard.name} of {files.name} lacks {absent[0]} ({len(absent)} tensors that the index says it has). "
                f"Download it again from {WHERE_FROM}."
            )
        used = {key: value for key, value in content.items() if not key.startswith(IGNORED_PREFIXES)}
        odd = next((key for key, value in used.items() if value.dtype not in STORED_DTYPES), None)
        if odd is not None:
            raise ValueError(
                f"{shard.name} of {files.name} holds {odd} as {str(used[odd].dtype).removeprefix('torch.')}; PURE's "
                "weights are bfloat16, and half or full precision will do. Take the files of "
                f"{WHERE_FROM}: weight_dtype makes fp8 of them when they are loaded."
            )
        tensors |= used
    return tensors


def at_fault(files: RestorerFiles, tensors: dict[str, Tensor], config: ChameleonConfig) -> str:
    """What an error about these tensors should name: the shard whose tensors have other shapes than the others', or
    that none asked for; else the folder."""
    expected = released_shapes(config)
    odd = [key for key, shape in shapes_of(tensors).items() if expected.get(key) != shape]
    if files.index:
        shards = {files.index.get(key) for key in odd}
    else:
        shards = {shard.name for shard in files.shards} if odd else set()
    (only,) = shards if len(shards) == 1 else (None,)
    return f"{only} of {files.name}" if only else files.name


def chosen_dtypes(weight_dtype: str, device: torch.device, parameters: int) -> tuple[torch.dtype, torch.dtype]:
    """(kept in, computed in). What the device cannot compute in is cast as it is used, as the host does."""
    management = comfy.model_management
    if weight_dtype != AUTO:
        kept = WEIGHT_DTYPES[weight_dtype]["dtype"]
    else:
        kept = management.unet_dtype(device, model_params=parameters, supported_dtypes=COMPUTE_DTYPES)
    if kept == FP8:
        return kept, management.unet_dtype(device, supported_dtypes=COMPUTE_DTYPES)
    return kept, management.unet_manual_cast(kept, device, [kept, *COMPUTE_DTYPES]) or kept


def quantised(name: str, weight: Tensor, fast: bool) -> Iterator[tuple[str, Tensor]]:
    """A matrix in fp8 with the scale that fills its range, and the mark by which the host's layers know it."""
    scale = (weight.abs().max().float() / torch.finfo(FP8).max).clamp(min=1e-12)
    mark = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": not fast}).encode()
    layer = name.removesuffix(".weight")
    yield name, (weight.float() / scale).to(FP8)
    yield f"{layer}.weight_scale", scale
    yield f"{layer}.comfy_quant", torch.tensor(list(mark), dtype=torch.uint8)


def converted(tensors: dict[str, Tensor], kept: torch.dtype, computed: torch.dtype, fast: bool) -> dict[str, Tensor]:
    """Tensors in the precision they are kept in, one after another; empties `tensors` on the way."""
    result: dict[str, Tensor] = {}
    for name in list(tensors):
        value = tensors.pop(name)
        if name.endswith(EXACT):
            result[name] = value.float()
        elif kept != FP8:
            result[name] = value.to(kept)
        elif name.endswith(QUANTISED):
            result.update(quantised(name, value, fast))
        else:
            result[name] = value.to(computed)
    return result


def fits_whole(device: torch.device, weights: int) -> bool:
    """Whether a GPU has room for all weights and an image's caches at once, with a margin.

    Then the host's dynamic memory, which pages weights in as they are used, would only cost time: a step over weights
    that stay can be replayed as a CUDA graph.
    """
    if not comfy.model_management.is_device_cuda(device):
        return False
    return weights + CACHES < SHARE_OF_MEMORY * comfy.model_management.get_total_memory(device)


def load_backbone(
    files: RestorerFiles, config: ChameleonConfig, weight_dtype: str = AUTO, disable_dynamic: bool = False
) -> tuple[ModelPatcher, torch.dtype]:
    """The transformer's patcher and what it computes in. Raises ValueError for weights that are not PURE's."""
    management = comfy.model_management
    tensors = read_shards(files)
    config = with_stored_norms(config, shapes_of(tensors))
    parameters = sum(value.numel() for value in tensors.values())
    try:
        fused = fuse(tensors, config, at_fault(files, tensors, config))
    except ValueError as error:
        raise ValueError(f"{error} Put the files of one release together ({WHERE_FROM}).") from error
    load_device, offload_device = management.get_torch_device(), management.unet_offload_device()
    kept, computed = chosen_dtypes(weight_dtype, load_device, parameters)
    if kept == FP8:
        disabled = set() if management.supports_fp8_compute(load_device) else {"float8_e4m3fn"}
        operations = comfy.ops.mixed_precision_ops({}, computed, disabled=disabled)
    else:
        operations = comfy.ops.pick_operations(kept, computed, load_device=load_device)
    network = Chameleon(
        config, dtype=computed if kept == FP8 else kept, device=offload_device, operations=operations
    ).eval()
    weights = converted(fused, kept, computed, fast=weight_dtype.endswith("_fast"))
    network.load_state_dict(weights, strict=True, assign=True)
    network.requires_grad_(False)
    whole = fits_whole(load_device, comfy.model_management.module_size(network))
    plain = disable_dynamic or whole
    patcher_class = ModelPatcher if plain else CoreModelPatcher
    return patcher_class(Backbone(network), load_device=load_device, offload_device=offload_device), computed


# --- VQGAN -----------------------------------------------------------------------------------------------------------


def load_vqgan(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """The VQGAN's patcher, in float32: its codes are what the transformer reads. Raises ValueError for another file."""
    content, _ = load_state_dict_file(path)
    try:
        config, tensors = check_released(path.name, content)
    except ValueError as error:
        raise ValueError(f"{error} PURE needs {VQ_FILE.name} of {VQ_FILE.page}.") from error
    management = comfy.model_management
    module = VQGAN(config, dtype=torch.float32, operations=comfy.ops.disable_weight_init).eval()
    module.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=True, assign=True)
    module.requires_grad_(False)
    patcher_class = ModelPatcher if disable_dynamic else CoreModelPatcher
    patcher = patcher_class(module, load_device=management.vae_device(), offload_device=management.vae_offload_device())
    patcher.cached_patcher_init = (_vqgan_again, (path,))
    return patcher
