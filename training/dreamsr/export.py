"""The files that the nodes load: the MM-ControlNet for `controlnet`, the acceleration LoRA for `loras`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...models.dreamsr.config import Injection
from ..engine.files import write_atomically
from .lora import lora_file

CONTROL_PREFIX, TRANSFORMER_PREFIX = "flux.control.", "flux.transformer."
"""Of the names in DreamSRNetwork."""


def part(tensors: Mapping[str, Tensor], prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {
        name.removeprefix(prefix): value.detach().to("cpu", dtype).contiguous()
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def write_control(
    folder: Path, name: str, tensors: Mapping[str, Tensor], injection: Injection, dtype: torch.dtype
) -> Path:
    """An MM-ControlNet of parameters by name in the training network, with where it acts as metadata.

    Written to controlnet/`name`_mm_controlnet.safetensors below `folder`.
    """
    control = part(tensors, CONTROL_PREFIX, dtype)
    metadata = {"format": "pt"} | injection.to_metadata()
    file = folder / "controlnet" / f"{name}_mm_controlnet.safetensors"
    return write_atomically(file, lambda path: save_file(control, path, metadata))


def write_lora(
    folder: Path, name: str, tensors: Mapping[str, Tensor], rank: int, alpha: float, dtype: torch.dtype
) -> Path:
    """The LoRA of parameters by name in the training network, in PEFT's names.

    Written to loras/`name`_acceleration.safetensors below `folder`.
    """
    found = lora_file(part(tensors, TRANSFORMER_PREFIX, dtype), rank, alpha)
    file = folder / "loras" / f"{name}_acceleration.safetensors"
    return write_atomically(file, lambda path: save_file(found, path, {"format": "pt"}))
