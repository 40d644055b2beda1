"""MM-ControlNet files: reading them from `controlnet`, building the managed network, writing them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.cli_args
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ....models.dreamsr.config import Injection, MMControlNetConfig
from ....models.dreamsr.mm_controlnet import MMControlNet
from ....models.state_dict import require_keys, shapes_of, sizes_of
from ...files import Reader, load_state_dict_file
from ...model_catalogue import chosen_file
from ...model_folders import model_files
from ...precision import WEIGHT_DTYPES
from ...types import Model

log = logging.getLogger(__name__)

# As for FLUX itself: half precision is too narrow for it, so bfloat16 comes first.
INFERENCE_DTYPES = [torch.bfloat16, torch.float16, torch.float32]

QUANTISATION_KEYS = (".comfy_quant", ".weight_scale", ".input_scale")


@dataclass(frozen=True, eq=False)
class MMControl:
    """A loaded MM-ControlNet: what a REALISR_MM_CONTROLNET socket carries."""

    name: str
    """The file's, for messages."""
    patcher: Model
    """The network under the host's memory management."""
    injection: Injection
    compute_dtype: torch.dtype
    """What its inputs are cast to."""
    copies: dict[torch.device, Model] = field(default_factory=dict, repr=False)
    """Of the patcher, for other devices: loading one takes as long as loading the network."""

    @property
    def network(self) -> MMControlNet:
        return self.patcher.model

    @property
    def config(self) -> MMControlNetConfig:
        return self.network.config

    def patcher_on(self, device: torch.device) -> Model:
        """The network for another device, which has a copy of the MODEL. Raises ValueError where there is no file."""
        if device not in self.copies:
            self.copies[device] = self.patcher.deepclone_multigpu(device)
        return self.copies[device]


def control_choices() -> list[str]:
    return [name for name in model_files("controlnet") if name.endswith(".safetensors")]


def find_control(name: str) -> Path:
    """The file behind a loader choice. Raises FileNotFoundError saying what to do."""
    return chosen_file("controlnet", name)


def read_control_config(source: str, state_dict: dict[str, Any]) -> MMControlNetConfig:
    """Sizes of a state dict. Raises ValueError when it is not a complete MM-ControlNet."""
    advice = (
        "Choose a DreamSR MM-ControlNet, or make one with Initialise MM-ControlNet. Ordinary ControlNets go through "
        "ComfyUI's own Load ControlNet Model."
    )
    with sizes_of("DreamSR MM-ControlNet", source, state_dict, advice), torch.device("meta"):
        config = MMControlNetConfig.from_shapes(shapes_of(state_dict))
        expected = MMControlNet(config).state_dict()
    require_keys("DreamSR MM-ControlNet", source, expected, state_dict, QUANTISATION_KEYS)
    return config


def read_injection(source: str, metadata: Mapping[str, str], config: MMControlNetConfig) -> Injection:
    try:
        return Injection.from_metadata(metadata, config.layers)
    except ValueError as error:
        raise ValueError(f"{source} cannot be used: {error}. Download it again, or save it anew.") from error


def load_mm_control(
    name: str,
    weight_dtype: str = "default",
    disable_dynamic: bool = False,
    read: Reader = load_state_dict_file,
    device: torch.device | None = None,
) -> MMControl:
    """The MM-ControlNet of a file in `controlnet`. weight_dtype: a key of WEIGHT_DTYPES. read: opens the file.

    device: where the network is made, the host's place for models that rest by default.

    Raises ValueError for a file that is damaged, no MM-ControlNet, or has malformed metadata.
    """
    path = find_control(name)
    state_dict, metadata = read(path)
    state_dict, metadata = comfy.utils.convert_old_quants(state_dict, "", metadata=metadata)
    config = read_control_config(name, state_dict)
    injection = read_injection(name, metadata, config)
    control = build_control(name, config, injection, state_dict, WEIGHT_DTYPES[weight_dtype], disable_dynamic, device)
    control.patcher.cached_patcher_init = (load_patcher, (name, weight_dtype))
    how = "loaded" if read is load_state_dict_file else "looked at"
    log.info("RealISR: %s MM-ControlNet %s (%s blocks) from %s", how, name, config.layers, path)
    return control


def load_patcher(name: str, weight_dtype: str, disable_dynamic: bool = False) -> Model:
    return load_mm_control(name, weight_dtype, disable_dynamic).patcher


def refuse_copy(name: str, **_: Any) -> Model:
    """In place of loading a network again that was never in a file."""
    raise ValueError(
        f"The {name} is in no file yet, so it cannot be copied to a second GPU. Save it with Save MM-ControlNet and "
        "load it with Load MM-ControlNet, or leave out MultiGPU CFG Split."
    )


def build_control(
    name: str,
    config: MMControlNetConfig,
    injection: Injection,
    state_dict: dict[str, Any],
    options: Mapping[str, Any],
    disable_dynamic: bool = False,
    device: torch.device | None = None,
) -> MMControl:
    """Device, precision and casting as the host chooses them for its own diffusion models."""
    management = comfy.model_management
    load_device, offload_device = management.get_torch_device(), management.unet_offload_device()
    quantisation = comfy.utils.detect_layer_quantization(state_dict, "")
    dtype = options.get("dtype")
    if dtype is None:
        dtype = management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(state_dict),
            supported_dtypes=INFERENCE_DTYPES,
            weight_dtype=None if quantisation else comfy.utils.weight_dtype(state_dict),
        )
    manual_cast = management.unet_manual_cast(None if quantisation else dtype, load_device, INFERENCE_DTYPES)
    operations = comfy.ops.pick_operations(
        dtype,
        manual_cast,
        load_device,
        fp8_optimizations=options.get("fp8_optimizations", False),
        model_config=SimpleNamespace(quant_config=quantisation),
    )
    network = MMControlNet(config, dtype=dtype, device=device or offload_device, operations=operations)
    network.eval().requires_grad_(False)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(network, load_device=load_device, offload_device=offload_device)
    # Strict except for what only the host's quantised layers know of; the keys were checked by name and shape.
    network.load_state_dict(state_dict, strict=not quantisation, assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (refuse_copy, (name,))
    return MMControl(name, patcher, injection, manual_cast or dtype)


def save_mm_control(control: MMControl, prefix: str, workflow: Mapping[str, Any]) -> Path:
    """Write the network under `prefix` in the host's output folder, with its metadata; returns the file.

    workflow: what goes into the metadata beside it unless the host is told to write none, name to JSON data.
    """
    folder, filename, counter, *_ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    metadata = control.injection.to_metadata()
    if not comfy.cli_args.args.disable_metadata:
        metadata |= {name: json.dumps(data) for name, data in workflow.items() if data is not None}
    path = Path(folder) / f"{filename}_{counter:05}_.safetensors"
    tensors: dict[str, Tensor] = {
        key: value.detach().contiguous() for key, value in control.patcher.model_state_dict().items()
    }
    comfy.utils.save_torch_file(tensors, str(path), metadata=metadata)
    return path
