"""Weights of a model as users have them: one .safetensors file, or a folder as diffusers and transformers write it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...models.state_dict import describe_state_dict, require_keys

ModuleT = TypeVar("ModuleT", bound=nn.Module)

SCALED = (".scale_weight", "scaled_fp8", ".weight_scale", ".comfy_quant", ".quant_state.")
"""Marks of weights that are more than a cast away from their values."""


class WeightFiles:
    """The tensors of a file or folder by name. Opening reads headers alone."""

    def __init__(self, path: Path, part: str = ""):
        """part: the folder within a pipeline's folder, as in "transformer".

        Raises FileNotFoundError when there is nothing, ValueError for a file that is no .safetensors, is damaged, or
        holds weights with scales of their own.
        """
        self.path = path
        self.folder = part_of(path, part)
        self.homes: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in files_of(self.folder):
            with opened(file) as handle:
                for name in handle.keys():
                    self.homes.setdefault(name, file)
                    self.shapes.setdefault(name, tuple(handle.get_slice(name).get_shape()))
        scaled = next((name for name in self.shapes for mark in SCALED if mark in name), None)
        if scaled is not None:
            raise ValueError(
                f"{path} is quantised with scales ({scaled}), which training does not read. Use the bf16, fp16, fp32 "
                "or plain fp8 file."
            )

    def without_prefix(self, *prefixes: str) -> dict[str, str]:
        """Names in the file by their names without the first of the prefixes that any has; all as they are if none."""
        for prefix in prefixes:
            found = {name.removeprefix(prefix): name for name in self.homes if name.startswith(prefix)}
            if found:
                return found
        return {name: name for name in self.homes}

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor on the CPU."""
        with opened(self.homes[name]) as handle:
            value = handle.get_tensor(name)
        return value if dtype is None else value.to(dtype)

    @cached_property
    def config(self) -> dict | None:
        """What config.json beside the weights says; None for a lone file."""
        file = self.folder / "config.json"
        return json.loads(file.read_text(encoding="utf-8")) if self.folder.is_dir() and file.is_file() else None


def part_of(path: Path, part: str) -> Path:
    """`path`, or the folder of a pipeline's part within it."""
    inner = path / part
    return inner if part and inner.is_dir() else path


def files_of(path: Path) -> list[Path]:
    """The .safetensors files of a model. Raises FileNotFoundError, and ValueError when it is unclear which they are."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"{path} is no .safetensors file. Use the .safetensors version of the model.")
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"there is no {path}")
    for index in sorted(path.glob("*.safetensors.index.json")):
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [path / name for name in sorted(set(named))]
    for name in ("diffusion_pytorch_model.safetensors", "model.safetensors"):
        if (path / name).is_file():
            return [path / name]
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise ValueError(f"{path} holds {len(found)} .safetensors files and no index: name one of them")
    raise FileNotFoundError(f"there is no .safetensors file in {path}")


def opened(file: Path):
    try:
        return safe_open(file, "pt")
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or incomplete ({error}). Download it again.") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no {file}") from error


def check(what: str, files: WeightFiles, module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError naming the first tensors that a file lacks, has too many of, or in another shape."""
    found = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    require_keys(what, str(files.path), module.state_dict(), found)


def not_a(what: str, files: WeightFiles, why: object) -> ValueError:
    looks = describe_state_dict(dict.fromkeys(files.shapes))
    return ValueError(f"{files.path} is not a {what}: {why}. It looks like {looks}.")


def assemble(
    make: Callable[[], ModuleT],
    names: Iterable[str] | None,
    read: Callable[[str], Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> ModuleT:
    """A module with weights from `read`, frozen, without ever holding them twice. On the meta device nothing is read.

    names: of its state dict that are read; None for all.
    """
    from accelerate import init_empty_weights

    with init_empty_weights():
        module = make()
    module.eval().requires_grad_(False)
    if device.type == "meta":
        return nn.Module.to(module, device="meta", dtype=dtype)
    wanted = list(module.state_dict()) if names is None else list(names)
    module.load_state_dict({name: read(name).to(device, dtype) for name in wanted}, strict=names is None, assign=True)
    return nn.Module.to(module.requires_grad_(False), device)


def fingerprint(path: Path) -> list[Any]:
    """What tells a model's files from others without reading them: names, sizes and times."""
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
