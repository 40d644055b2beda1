"""Models as their files describe them: shapes and types without the weights, for what is to be known before a run.

What a loader makes of `described_tensors` on torch's meta device has the sizes of the real model and takes no memory,
so that the host's own formulas answer for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from .files import SAFETENSORS, check_container, first_line, require_file

T = TypeVar("T")

TEXT_BYTES = 2**16
"""Of 8-bit tensors up to this length the content is read: settings are stored as text in them."""

KEPT = 32
"""Descriptions that are remembered, the oldest let go first."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def described_tensors(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """As files.load_state_dict_file, with tensors on the meta device.

    Raises ValueError for a file that is absent, damaged, or not one of tensors.
    """
    path = Path(path)
    require_file(path)
    try:
        check_container(path)
        if path.suffix.lower() in SAFETENSORS:
            return described_safetensors(path)
        # Whole tables of tensors lie in pickles; what else is in them runs nothing.
        content = torch.load(path, map_location="meta", weights_only=True)
    # A damaged file fails in any way.
    except Exception as error:
        raise ValueError(f"{path.name} cannot be read: {first_line(error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path.name} holds no table of tensors.")
    nested = content.get("state_dict")
    return dict(nested if isinstance(nested, Mapping) else content), {}


def described_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in file.keys():
            part = file.get_slice(name)
            shape, dtype = part.get_shape(), DTYPES[part.get_dtype()]
            if dtype == torch.uint8 and len(shape) == 1 and shape[0] <= TEXT_BYTES:
                tensors[name] = file.get_tensor(name)
            else:
                tensors[name] = torch.empty(shape, dtype=dtype, device="meta")
        return tensors, file.metadata() or {}


_kept: dict[Hashable, Any] = {}
_lock = threading.Lock()


def described(build: Callable[[], T], *key: Hashable, files: tuple[Path, ...] = ()) -> T:
    """What `build()` makes on the meta device; remembered for this key until one of the files changes.

    Raises what build raises.
    """
    stats = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.exists())
    whole = (*key, stats)
    with _lock:
        if whole not in _kept:
            with torch.device("meta"), torch.no_grad():
                _kept[whole] = build()
            while len(_kept) > KEPT:
                _kept.pop(next(iter(_kept)))
        return _kept[whole]
