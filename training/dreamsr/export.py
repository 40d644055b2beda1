"""The files that the nodes load: the MM-ControlNet for `controlnet`, the acceleration LoRA for `loras`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ...models.dreamsr.config import Injection
from ..engine.files import write_atomically
from .lora import lora_file

CONTROL_PREFIX, TRANSFORMER_PREFIX = "flux.control.", "flux.transformer."
"""Of the names in DreamSRNetwork."""
CONTROL_FILE = "controlnet/dreamsr_mm_controlnet.safetensors"
LORA_FILE = "loras/dreamsr_acceleration.safetensors"
"""Below the run's folder, in the folders that the host has for such files."""


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def write_control(folder: Path, tensors: Mapping[str, Tensor], injection: Injection) -> Path:
    """An MM-ControlNet of parameters by name in the training network, with where it acts as metadata."""
    control = {name: value.contiguous() for name, value in without_prefix(tensors, CONTROL_PREFIX).items()}
    metadata = {"format": "pt"} | injection.to_metadata()
    return write_atomically(folder / CONTROL_FILE, lambda path: save_file(control, path, metadata))


def write_lora(folder: Path, tensors: Mapping[str, Tensor], rank: int, alpha: float) -> Path:
    """The LoRA of parameters by name in the training network, in PEFT's names."""
    found = lora_file(without_prefix(tensors, TRANSFORMER_PREFIX), rank, alpha)
    return write_atomically(folder / LORA_FILE, lambda path: save_file(found, path, {"format": "pt"}))
