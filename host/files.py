"""Reading weight files, and saying what is wrong with one in words a user can act on."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import comfy.utils
import torch
from safetensors import safe_open
from torch import Tensor

Reader = Callable[[Path], tuple[dict[str, Any], dict[str, str]]]
"""Tensors and metadata of a file: load_state_dict_file, or described.described_tensors for their shapes alone."""

SAFETENSORS = (".safetensors", ".sft")

MOST_PER_STORED_BYTE = 4
"""Bytes of tensors that a byte of the file may stand for: tied weights are stored once and counted each time."""

CHUNK = 2**24
"""Values of fp8 that are widened at a time to look at them."""


def load_state_dict_file(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a `.safetensors` file, or of a pickle holding tensors and plain data only.

    A pickle's outer dict is returned as it is (a lone nested dict is unwrapped by the host's loader). Every tensor in
    it and in the dicts inside it is an ordinary one, stored in the file in full, without NaN or infinity.

    Raises ValueError, naming the file and what to do, for anything else: a file that is absent, a folder, empty, not
    readable, damaged or incomplete, that runs code when opened, or whose content is no table of such tensors.
    """
    path = Path(path)
    require_file(path)
    try:
        check_container(path)
        content, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} is a pickle that runs code when opened (or is no PyTorch file at all), so it was not opened. "
            f"Use a .safetensors file, or a .pth that holds tensors only. Details: {first_line(error)}"
        ) from error
    # The host's loader and the unpickler fail in any way on bytes that nobody meant to be a file.
    except Exception as error:
        raise ValueError(
            f"{path.name} cannot be read: it is damaged or incomplete ({path.stat().st_size:,} bytes), "
            f"or holds no table of tensors. Compare its size with the published one and download it again. "
            f"Details: {first_line(error)}"
        ) from error
    try:
        check_content(content, path.stat().st_size)
    except ValueError as error:
        raise ValueError(
            f"{path.name} cannot be used: {error}. Download it again, or choose the file the model's authors publish."
        ) from error
    return content, metadata or {}


def require_file(path: Path) -> None:
    """Raises ValueError unless `path` is a file that can be opened and is not empty."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a weight file. Choose the file inside it, or put it in its place.")
    if not path.is_file():
        raise ValueError(f"{path} does not exist. Put the file there, or refresh the node list (R) and choose another.")
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror}). Let ComfyUI's user read it.") from error
    if not first:
        raise ValueError(f"{path.name} is empty (0 bytes): its download failed or is not finished. Download it again.")


def check_container(path: Path) -> None:
    """What the host's reading does not look at before it allocates: the whole header, and how large a zip unpacks.

    Raises what safetensors does, or ValueError.
    """
    if path.suffix.lower() in SAFETENSORS:
        with safe_open(path, framework="pt"):
            return
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MOST_PER_STORED_BYTE * path.stat().st_size:
            raise ValueError(f"it unpacks to {unpacked:,} bytes")


def check_content(content: Any, stored: int) -> None:
    """Raises ValueError unless this is a table by names of whole and finite tensors that `stored` bytes suffice for."""
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not a table of tensors")
    for table in (content, *(value for value in content.values() if isinstance(value, Mapping))):
        odd = [key for key in table if not isinstance(key, str)]
        if odd:
            raise ValueError(f"the name of an entry is a {type(odd[0]).__name__} ({odd[0]!r:.40}), not text")
    declared = 0
    for name, tensor in tensors_in(content):
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise ValueError(f"{name} is a sparse, quantised or empty kind of tensor, which no model of this pack has")
        size = tensor.numel() * tensor.element_size()
        held = tensor.untyped_storage().nbytes()
        declared += size
        if size > held:
            raise ValueError(f"{name} says it is {list(tensor.shape)}, {size:,} bytes, and {held:,} are stored")
        if declared > MOST_PER_STORED_BYTE * stored:
            raise ValueError(f"its tensors say they are {declared:,} bytes and more, and {stored:,} are stored")
    # After the sizes: looking at a tensor reads all that it says it is.
    for name, tensor in tensors_in(content):
        if not is_finite(tensor):
            raise ValueError(f"{name} holds values that are not numbers (NaN or infinite), which ruin every image")


def tensors_in(content: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a table and of the tables in it."""
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items() if isinstance(inner, Tensor))


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are numbers. By their extremes: 25 GB/s where torch.isfinite makes 1."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    # torch knows no extremes of the 8-bit types.
    parts = (part.to(torch.float16) for part in tensor.flatten().split(CHUNK)) if tensor.itemsize == 1 else [tensor]
    return all(torch.stack(torch.aminmax(part)).isfinite().all() for part in parts)


def first_line(error: Exception) -> str:
    """An exception's kind and the first line it says, for the end of a message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
