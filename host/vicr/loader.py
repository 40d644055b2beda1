"""Loading a Vision-Context Bridge into a MODEL_PATCH the host manages."""

from __future__ import annotations

import logging

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch

from ...models.state_dict import require_keys, shapes_of, sizes_of
from ...models.vicr.bridge import BridgeConfig, NoBridge, VisionContextBridge, strip_prefixes
from ..files import load_state_dict_file
from ..model_folders import model_files
from ..types import Model

log = logging.getLogger(__name__)

FOLDER = "model_patches"
NO_BRIDGE = "none (CLIP's vector as it is)"


def bridge_choices() -> list[str]:
    """Files in models/model_patches, and the choice of none."""
    return [*model_files(FOLDER), NO_BRIDGE]


def load_bridge(name: str) -> Model:
    """The bridge in models/model_patches/`name`, in the precision of the file; it computes in that of its input.

    Raises ValueError for a file that is damaged or no bridge.
    """
    devices = {
        "load_device": comfy.model_management.get_torch_device(),
        "offload_device": comfy.model_management.unet_offload_device(),
    }
    if name == NO_BRIDGE:
        log.info("RealISR: no Vision-Context Bridge is loaded: CLIP's vector is added as it is, the paper's ablation")
        return comfy.model_patcher.ModelPatcher(NoBridge(), **devices)
    original, _ = load_state_dict_file(folder_paths.get_full_path_or_raise(FOLDER, name))
    state_dict = strip_prefixes(original)
    advice = "A bridge holds norm, proj_in, proj_out and scale, and belongs in models/model_patches."
    with sizes_of("Vision-Context Bridge", name, original, advice), torch.device("meta"):
        config = BridgeConfig.from_shapes(shapes_of(state_dict))
        expected = VisionContextBridge(config).state_dict()
    require_keys("Vision-Context Bridge", name, expected, state_dict)

    bridge = VisionContextBridge(
        config,
        dtype=comfy.utils.weight_dtype(state_dict),
        device=devices["offload_device"],
        operations=comfy.ops.manual_cast,
    )
    patcher = comfy.model_patcher.CoreModelPatcher(bridge, **devices)
    bridge.load_state_dict(state_dict, assign=patcher.is_dynamic())
    log.info("RealISR: loaded a Vision-Context Bridge %d -> %d from %s", config.embedding, config.width, name)
    return patcher
