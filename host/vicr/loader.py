"""Vision-Context Bridges as MODEL_PATCHes that the host manages: loaded, new, and written."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...models.state_dict import require_keys, shapes_of, sizes_of
from ...models.vicr.bridge import BridgeConfig, NoBridge, VisionContextBridge, strip_prefixes, untrained_bridge
from ..files import load_state_dict_file
from ..model_catalogue import chosen_file
from ..model_folders import model_files
from ..types import Model
from .bridge import vector_widths

log = logging.getLogger(__name__)

FOLDER = "model_patches"
NO_BRIDGE = "none (CLIP's vector as it is)"
JOINS = {"modulation vector": "hidden", "pooled text": "pooled"}
"""What a new bridge's vector can be added to, and which of the model's widths that takes."""


def bridge_choices() -> list[str]:
    """Files in models/model_patches, and the choice of none."""
    return [*model_files(FOLDER), NO_BRIDGE]


def find_bridge(name: str) -> Path | None:
    """The file behind a loader choice, None for no bridge. Raises FileNotFoundError saying what to do."""
    return None if name == NO_BRIDGE else chosen_file(FOLDER, name)


def load_bridge(name: str) -> Model:
    """The bridge in models/model_patches/`name`, in the precision of the file; it computes in that of its input.

    Raises ValueError for a file that is damaged or no bridge.
    """
    path = find_bridge(name)
    if path is None:
        log.info("RealISR: no Vision-Context Bridge is loaded: CLIP's vector is added as it is, the paper's ablation")
        return comfy.model_patcher.ModelPatcher(NoBridge(), **devices())
    original, _ = load_state_dict_file(path)
    state_dict = strip_prefixes(original)
    advice = "A bridge holds norm, proj_in, proj_out and scale, and belongs in models/model_patches."
    with sizes_of("Vision-Context Bridge", name, original, advice), torch.device("meta"):
        config = BridgeConfig.from_shapes(shapes_of(state_dict))
        expected = VisionContextBridge(config).state_dict()
    require_keys("Vision-Context Bridge", name, expected, state_dict)
    log.info("RealISR: loaded a Vision-Context Bridge %d -> %d from %s", config.embedding, config.width, name)
    return managed_bridge(config, state_dict)


def devices() -> dict[str, torch.device]:
    return {
        "load_device": comfy.model_management.get_torch_device(),
        "offload_device": comfy.model_management.unet_offload_device(),
    }


def managed_bridge(config: BridgeConfig, state_dict: dict[str, Tensor]) -> Model:
    """A bridge of these tensors, in their precision, under the host's memory management."""
    bridge = VisionContextBridge(
        config,
        dtype=comfy.utils.weight_dtype(state_dict),
        device=devices()["offload_device"],
        operations=comfy.ops.manual_cast,
    )
    patcher = comfy.model_patcher.CoreModelPatcher(bridge, **devices())
    bridge.load_state_dict(state_dict, assign=patcher.is_dynamic())
    return patcher


def untrained(model: Model, joins: str, hidden: int, seed: int) -> Model:
    """A new bridge for a FLUX MODEL; with it the model computes exactly what it did without.

    joins: a key of JOINS, what the bridge's vector is added to. hidden: width between its projections, 0 for that of
    the model. Raises ValueError when the MODEL is no FLUX.1.
    """
    widths = vector_widths(model)
    config = BridgeConfig(hidden=hidden or widths.hidden, width=getattr(widths, JOINS[joins]))
    return managed_bridge(config, untrained_bridge(config, seed).state_dict())


def save_bridge(bridge: Model, prefix: str, workflow: Mapping[str, Any]) -> Path:
    """Write a bridge under `prefix` in the host's output folder; returns the file.

    workflow: what goes into the metadata unless the host is told to write none, name to JSON data.
    """
    folder, filename, counter, *_ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    metadata = {}
    if not comfy.cli_args.args.disable_metadata:
        metadata = {name: json.dumps(data) for name, data in workflow.items() if data is not None}
    path = Path(folder) / f"{filename}_{counter:05}_.safetensors"
    tensors = {key: value.detach().contiguous() for key, value in bridge.model_state_dict().items()}
    comfy.utils.save_torch_file(tensors, str(path), metadata=metadata)
    return path
