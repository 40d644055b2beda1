"""PURE's golden files: several JSON strings as metadata, tensors named `in.x` or `<case>.in.x`.

The folder is chosen as in golden.py. A case's parameters are its entry in the file's `cases` list or `info` table.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from parity import golden

METHOD = "pure"


@cache
def metadata(path: Path) -> dict[str, Any]:
    """A file's metadata, each string parsed as JSON where it is JSON."""
    with safe_open(path, "pt") as file:
        strings = file.metadata() or {}
    return {key: parsed(value) for key, value in strings.items()}


def parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


@dataclass(frozen=True)
class Case:
    """One case of a file (or a file without cases, `name` empty), with its tensors under their names without it."""

    path: Path
    name: str
    parameters: dict[str, Any]

    @property
    def id(self) -> str:
        file = self.path.name.removesuffix(golden.SUFFIX)
        return f"{file}/{self.name}" if self.name else file

    @property
    def metadata(self) -> dict[str, Any]:
        return metadata(self.path)

    @property
    def prefix(self) -> str:
        return f"{self.name}." if self.name else ""

    def keys(self, pattern: str = "*") -> list[str]:
        with safe_open(self.path, "pt") as file:
            names = [key.removeprefix(self.prefix) for key in file.keys() if key.startswith(self.prefix)]
        return [name for name in sorted(names) if fnmatch.fnmatchcase(name, pattern)]

    def __contains__(self, key: str) -> bool:
        return key in self.keys()

    def __getitem__(self, key: str) -> Tensor:
        return self.shared(self.prefix + key)

    def shared(self, key: str) -> Tensor:
        """A tensor that belongs to the file, not to the case."""
        with safe_open(self.path, "pt") as file:
            if not {key, f"{key}@rows"} & set(file.keys()):
                raise golden.lacking(self.path, key)
            return tensor_of(file, key)


def tensor_of(file: Any, key: str) -> Tensor:
    """A tensor of an open file; of one that is stored as some of its rows, the others are zero."""
    if f"{key}@rows" not in file.keys():
        return file.get_tensor(key)
    rows, index = file.get_tensor(f"{key}@rows"), file.get_tensor(f"{key}@index")
    return rows.new_zeros(int(index[-1]), *rows.shape[1:]).index_copy(0, index[:-1], rows)


def read_cases(path: Path) -> list[Case]:
    data = metadata(path)
    with safe_open(path, "pt") as file:
        heads = {key.partition(".")[0] for key in file.keys()}
    if isinstance(data.get("cases"), list):
        return [Case(path, entry["case"], entry) for entry in data["cases"] if entry["case"] in heads]
    if heads & {"in", "mid", "out"}:
        return [Case(path, "", {})]
    info = data.get("info", {})
    return [Case(path, name, info.get(name, {})) for name in sorted(heads)]


def cases(pattern: str, wanted: Callable[[Case], bool] = lambda case: True) -> list[Any]:
    """Cases of every file matching a shell pattern, for pytest's parametrize; one skipped where there is none.

    wanted: which of them, by what they hold; names mean nothing.
    """
    folder = golden.folder(METHOD)
    paths = [path for path in sorted(folder.glob(pattern + golden.SUFFIX)) if ".weights" not in path.name]
    found = [case for path in paths for case in read_cases(path) if wanted(case)]
    if not found:
        lacking = f"no case for this test in {pattern}" if paths else f"no golden file {pattern}"
        reason = f"{lacking}{golden.SUFFIX} in {folder}"
        return [pytest.param(None, id=pattern, marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(case, id=case.id) for case in found]


def weights(*names: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata of the first and float32 tensors of all of several weight files; skips where one is absent."""
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = golden.folder(METHOD) / f"{name}{golden.WEIGHTS_SUFFIX}"
        if not path.is_file():
            pytest.skip(f"golden weights {path.name} are not in {path.parent}")
        with safe_open(path, "pt") as file:
            keys = {key.partition("@")[0] for key in file.keys()}
            tensors |= {key: as_float32(tensor_of(file, key)) for key in keys}
    return metadata(golden.folder(METHOD) / f"{names[0]}{golden.WEIGHTS_SUFFIX}"), tensors


def as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def assert_close(actual: Tensor, expected: Tensor, absolute: float, relative: float, what: str = "output") -> None:
    """Same shape and no element further than absolute + relative * |reference|."""
    torch.testing.assert_close(
        actual.float(), expected.float(), atol=absolute, rtol=relative, msg=lambda text: f"{what}: {text}"
    )
