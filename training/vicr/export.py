"""The files of a VICR training: a LoRA for models/loras and a bridge for models/model_patches, as the nodes load them.

LoRA: PEFT's names under `transformer.`, `lora_A` and `lora_B`, no alpha (the factor is 1). Bridge: norm, proj_in,
proj_out and scale. Both state the run in their metadata, under `realisr_vicr`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...models.state_dict import require_keys, shapes_of, sizes_of
from ...models.vicr.bridge import BridgeConfig, VisionContextBridge, strip_prefixes
from ..engine.files import write_atomically
from ..flux.files import WeightFiles

METADATA_KEY = "realisr_vicr"
ADAPTER = ".default."
"""What peft puts into its names while training."""
BRIDGE = "bridge."


def split_files(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(LoRA, bridge) from trained parameters by their names in the network; the bridge empty where there is none."""
    lora = {name.replace(ADAPTER, "."): value for name, value in tensors.items() if ".lora_" in name}
    bridge = {name.removeprefix(BRIDGE): value for name, value in tensors.items() if name.startswith(BRIDGE)}
    left = set(tensors) - {name for name in tensors if ".lora_" in name or name.startswith(BRIDGE)}
    if left:
        raise ValueError(f"{sorted(left)[0]} belongs to neither the LoRA nor the bridge")
    return lora, bridge


def write_files(
    folder: Path, name: str, tensors: Mapping[str, Tensor], dtype: torch.dtype, stated: Mapping[str, Any]
) -> list[Path]:
    """Write both files under `folder`, whose parts have the names of the host's model folders; returns their paths.

    stated: about the run, for the metadata.
    """
    lora, bridge = split_files(tensors)
    metadata = {"format": "pt", METADATA_KEY: json.dumps(stated, sort_keys=True)}
    files = {f"loras/{name}.safetensors": lora, f"model_patches/{name}_bridge.safetensors": bridge}
    paths = []
    for place, part in files.items():
        if part:
            whole = {key: value.detach().to("cpu", dtype).contiguous() for key, value in part.items()}
            paths.append(write_atomically(folder / place, partial(save_file, whole, metadata=metadata)))
    return paths


def read_bridge(path: Path) -> tuple[BridgeConfig, dict[str, Tensor]]:
    """A bridge's sizes and tensors in float32. Raises FileNotFoundError; ValueError for a file that is no bridge."""
    files = WeightFiles(path)
    tensors = strip_prefixes({name: files.read(name, torch.float32) for name in files.shapes})
    with sizes_of("Vision-Context Bridge", str(path), tensors), torch.device("meta"):
        config = BridgeConfig.from_shapes(shapes_of(tensors))
        expected = VisionContextBridge(config).state_dict()
    require_keys("Vision-Context Bridge", str(path), expected, tensors)
    return config, tensors
