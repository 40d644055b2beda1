"""Reading weight files, and saying what is wrong with one in words a user can act on."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import comfy.utils
from safetensors import SafetensorError


def load_state_dict_file(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a `.safetensors` file, or of a pickle holding tensors and plain data only.

    A pickle's outer dict is returned as it is (a lone nested dict is unwrapped by the host's loader).
    Raises ValueError, naming the file, when it is damaged, incomplete, or a pickle that runs code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist. Put the file there, or refresh the node list (R) and choose another.")
    try:
        state_dict, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} is a pickle that runs code when opened (or is no PyTorch file at all), so it was not opened. "
            f"Use a .safetensors file, or a .pth that holds tensors only. Details: {str(error).splitlines()[0]}"
        ) from error
    except (SafetensorError, ValueError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path.name} cannot be read: it is damaged or incomplete ({path.stat().st_size:,} bytes). "
            f"Compare its size with the published one and download it again. Details: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(state_dict, dict):
        raise ValueError(f"{path.name} holds a {type(state_dict).__name__}, not a table of tensors.")
    return state_dict, metadata or {}
