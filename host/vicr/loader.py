"""Loading a Vision-Context Bridge into a MODEL_PATCH the host manages."""

from __future__ import annotations

import logging

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch

from ...models.state_dict import describe_state_dict, require_keys, shapes_of
from ...models.vicr.bridge import BridgeConfig, VisionContextBridge, strip_prefixes
from ..files import load_state_dict_file
from ..model_folders import model_files

FOLDER = "model_patches"


def bridge_choices() -> list[str]:
    """Files in models/model_patches."""
    return model_files(FOLDER)


def load_bridge(name: str) -> comfy.model_patcher.ModelPatcher:
    """The bridge in models/model_patches/`name`, in the precision of the file; it computes in that of its input.

    Raises ValueError for a file that is damaged or no bridge.
    """
    original, _ = load_state_dict_file(folder_paths.get_full_path_or_raise(FOLDER, name))
    state_dict = strip_prefixes(original)
    try:
        config = BridgeConfig.from_shapes(shapes_of(state_dict))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{name} is not a Vision-Context Bridge: it lacks {error.args[0]}. "
            f"It looks like {describe_state_dict(original)}. "
            "A bridge holds norm, proj_in, proj_out and scale, and belongs in models/model_patches."
        ) from error
    with torch.device("meta"):
        expected = VisionContextBridge(config).state_dict()
    require_keys("Vision-Context Bridge", name, expected, state_dict)

    management = comfy.model_management
    offload_device = management.unet_offload_device()
    bridge = VisionContextBridge(
        config, dtype=comfy.utils.weight_dtype(state_dict), device=offload_device, operations=comfy.ops.manual_cast
    )
    patcher = comfy.model_patcher.CoreModelPatcher(
        bridge, load_device=management.get_torch_device(), offload_device=offload_device
    )
    bridge.load_state_dict(state_dict, assign=patcher.is_dynamic())
    logging.info("RealISR: loaded a Vision-Context Bridge %d -> %d from %s", config.embedding, config.width, name)
    return patcher
