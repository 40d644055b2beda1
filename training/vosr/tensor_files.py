"""Reading the weight files that the nodes take, without ComfyUI."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SAFETENSORS = (".safetensors", ".sft")


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Tensors by name of a safetensors file, or of a pickle that holds tensors and plain data only.

    device: where they go; on the meta device shapes and types alone are read. Of a pickle that holds a dictionary of
    dictionaries, the `model_state_dict` or `state_dict`.

    Raises FileNotFoundError, or ValueError for a file that is damaged, runs code when opened, or holds no tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        content = read_safetensors(path, device) if path.suffix in SAFETENSORS else read_pickle(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read: it is damaged, or no file of tensors ({error})") from error
    for inner in ("model_state_dict", "state_dict"):
        content = content.get(inner, content)
    return {key: value.to(device) for key, value in content.items() if isinstance(value, Tensor)}


def read_safetensors(path: Path, device: torch.device | str) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        if torch.device(device).type != "meta":
            return {name: file.get_tensor(name) for name in file.keys()}
        return {name: header_tensor(file.get_slice(name)) for name in file.keys()}


def header_tensor(entry: Any) -> Tensor:
    """A meta tensor of the shape that a safetensors header states. The type is not needed for an estimate."""
    return torch.empty(entry.get_shape(), device="meta")


def read_pickle(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # a file of the old format cannot be mapped
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise pickle.UnpicklingError(f"it holds a {type(content).__name__}")
    return content
