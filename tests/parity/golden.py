"""Reference tensors for the parity tests, read from a folder of safetensors files.

Each file carries one metadata string, `golden`: JSON with the file's parameters and, in some files, a list of
`cases`. Tensors are named `<case>/in/...` (inputs), `<case>/mid/...` (intermediates) and `<case>/out/...`
(results); a file with a single nameless case drops the `<case>/`. Files named `*.weights.safetensors` hold a tiny
model and its `config`; `*.weights.json` are recipes for models too large to store, with the digest of the result.

The folder is tests/golden/<method>, a trimmed copy, or REALISR_GOLDEN: the method's folder itself or the folder
above it. Tests take whatever cases the folder has; a file that is absent becomes a skipped test.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

SUFFIX = ".safetensors"
WEIGHTS_SUFFIX = ".weights.safetensors"
RECIPE_SUFFIX = ".weights.json"
ROLES = ("in", "mid", "out", "draw")


def folder(method: str = "vosr") -> Path:
    """The folder of a method's golden files."""
    override = os.environ.get("REALISR_GOLDEN")
    root = Path(override) if override else Path(__file__).resolve().parent.parent / "golden"
    return root / method if (root / method).is_dir() else root


@cache
def parameters(path: Path) -> dict[str, Any]:
    """The JSON of a file's `golden` metadata string."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["golden"])


def lacking(path: Path, key: str) -> KeyError:
    """A tensor that a file does not hold. In a folder of one's own that is a reason to skip; in tests/golden, whose
    files are known, an error."""
    if os.environ.get("REALISR_GOLDEN"):
        pytest.skip(f"{path.name} has no {key}")
    return KeyError(f"{path.name} has no {key}")


@dataclass(frozen=True)
class Case:
    """One case of one golden file: its parameters and its tensors under their names without the case's own.

    `parameters` are the file's, overridden by the case's entry in its `cases` list.
    """

    path: Path
    name: str
    parameters: dict[str, Any]

    @property
    def file(self) -> str:
        return self.path.name.removesuffix(SUFFIX)

    @property
    def id(self) -> str:
        return f"{self.file}/{self.name}" if self.name else self.file

    @property
    def prefix(self) -> str:
        return f"{self.name}/" if self.name else ""

    def keys(self, pattern: str = "*") -> list[str]:
        """Names of this case's tensors that match a shell pattern such as `mid/b*_out`."""
        with safe_open(self.path, "pt") as file:
            names = [key.removeprefix(self.prefix) for key in file.keys() if key.startswith(self.prefix)]
        return [name for name in sorted(names) if fnmatch.fnmatchcase(name, pattern)]

    def __contains__(self, key: str) -> bool:
        return key in self.keys()

    def __getitem__(self, key: str) -> Tensor:
        if key not in self:
            raise lacking(self.path, self.prefix + key)
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(self.prefix + key)

    def get(self, key: str) -> Tensor | None:
        """The tensor, or None where a trimmed copy lacks it."""
        return self[key] if key in self else None

    def reference(self, key: str, actual: Tensor) -> tuple[Tensor, Tensor]:
        """`actual` and the reference to compare it with.

        A file may hold `<key>_every8` in place of `<key>`: every 8th index along the first axis longer than 1.
        `actual` is then thinned alike.
        """
        if key in self:
            return actual, self[key]
        thinned = next(iter(self.keys(f"{key}_every*")), None)
        if thinned is None:
            raise lacking(self.path, self.prefix + key)
        step = int(thinned.rpartition("_every")[2])
        axis = next(axis for axis, size in enumerate(actual.shape) if size > 1)
        index = torch.arange(0, actual.shape[axis], step, device=actual.device)
        return actual.index_select(axis, index), self[thinned]


def read_cases(path: Path) -> Iterator[Case]:
    """Every case of a file: the ones its metadata lists, then others its tensor names show."""
    params = dict(parameters(path))
    listed = {entry["name"]: entry for entry in params.pop("cases", [])}
    with safe_open(path, "pt") as file:
        parts = [key.split("/") for key in file.keys()]
    found = [head for head, *rest in parts if rest and rest[0] == "in"]
    listed = {name: entry for name, entry in listed.items() if any(head == name for head, *_ in parts)}
    nameless = any(head in ROLES for head, *_ in parts) or not (listed or found)
    names = [""] if nameless else [*listed, *sorted(set(found) - set(listed))]
    for name in names:
        yield Case(path, name, {**params, **listed.get(name, {})})


def cases(pattern: str, method: str = "vosr", wanted: Callable[[Case], bool] = lambda case: True) -> list[Any]:
    """Cases of every file matching a shell pattern (`dit_forward_*`), as arguments for pytest's parametrize.

    wanted: which of them, by what they hold; names mean nothing. One skipped argument when there is none.
    """
    paths = [path for path in sorted(folder(method).glob(pattern + SUFFIX)) if not path.name.endswith(WEIGHTS_SUFFIX)]
    found = [case for path in paths for case in read_cases(path) if wanted(case)]
    if not found:
        lacking = f"no case for this test in {pattern}{SUFFIX}" if paths else f"no golden file {pattern}{SUFFIX}"
        reason = f"{lacking} in {folder(method)}"
        return [pytest.param(None, id=pattern, marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(case, id=case.id) for case in found]


def weights(name: str, method: str = "vosr") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and state dict of a tiny reference model; skips the calling test when the folder lacks it.

    The config of a file without one is all its metadata.
    """
    path, recipe = (folder(method) / f"{name}{suffix}" for suffix in (WEIGHTS_SUFFIX, RECIPE_SUFFIX))
    if recipe.is_file():
        return expanded(recipe)
    if not path.is_file():
        pytest.skip(f"golden weights {path.name} are not in {path.parent}")
    with safe_open(path, "pt") as file:
        golden = parameters(path)
        return golden.get("config", golden), {key: file.get_tensor(key) for key in file.keys()}


@cache
def expanded(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and state dict of a recipe: each tensor drawn by SplitMix64, whole numbers only, from seed and name.

    Raises AssertionError when the result is not what the recipe's digest says.
    """
    recipe = json.loads(path.read_text(encoding="utf-8"))
    state_dict, digest = {}, hashlib.sha256()
    for name in sorted(recipe["tensors"]):
        shape, scale, offset = recipe["tensors"][name]
        values = offset + scale * uniform(f"{recipe['seed']}:{name}", int(np.prod(shape)))
        array = values.astype("<f4").reshape(shape)
        digest.update(array.tobytes())
        state_dict[name] = torch.from_numpy(array)
    assert digest.hexdigest() == recipe["sha256"], f"{path.name} does not expand to the weights it was made with"
    return recipe.get("config", recipe), state_dict


def uniform(label: str, count: int) -> np.ndarray:
    """`count` numbers in (-1, 1), never 0, the same on every machine."""
    start = np.uint64(int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "little"))
    state = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = ((state ^ (state >> np.uint64(31))) >> np.uint64(40)).astype(np.int64)
    return (bits * 2 + 1 - 2**24) / 2.0**24


def assert_within(actual: Tensor, expected: Tensor, tolerance: float, what: str = "output") -> None:
    """Same shape and no element further than `tolerance` (absolute) from the reference."""
    assert tuple(actual.shape) == tuple(expected.shape), (
        f"{what}: shape {tuple(actual.shape)}, reference {tuple(expected.shape)}"
    )
    worst = (actual.double() - expected.double()).abs().max().item()
    assert worst <= tolerance, f"{what}: off by {worst:.3g}, tolerance {tolerance:.3g}"


def assert_levels(actual: Tensor, expected: Tensor, levels: int, exact_share: float, what: str = "image") -> None:
    """8-bit images: no value further than `levels` from the reference and at least `exact_share` of them equal."""
    assert actual.dtype == expected.dtype == torch.uint8, f"{what}: {actual.dtype} against {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, reference {tuple(expected.shape)}"
    difference = (actual.int() - expected.int()).abs()
    worst, exact = difference.max().item(), (difference == 0).double().mean().item()
    assert worst <= levels and exact >= exact_share, (
        f"{what}: off by up to {worst} levels (allowed {levels}), {exact:.5f} exact (needed {exact_share})"
    )
