"""Damaged and forged weight files, made from a seed out of a whole one."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor

Content = dict[str, Any]
Tensors = dict[str, Tensor]

HUGE = 10**15
STRAY_INDEX = 999_999_999


def write(path: Path, content: Content) -> None:
    """In the format of the file's name; a safetensors file takes the tensors only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous().clone() for key, value in content.items()}, path)
    else:
        torch.save(content, path)


def flat(content: Content) -> Any:
    """The table of tensors inside a file's content, or the content itself."""
    return next((content[name] for name in ("model_state_dict", "model") if name in content), content)


# --- damage to bytes -------------------------------------------------------------------------------------------------


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def flip_bits(data: bytes, draw: random.Random) -> bytes:
    """A few bits of the first 4 KB, where safetensors has its header, or of the last, where a zip has its directory."""
    damaged = bytearray(data)
    region = min(4096, len(data))
    start = draw.choice([0, len(data) - region])
    for _ in range(draw.randint(1, 8)):
        damaged[start + draw.randrange(region)] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def noise(data: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(draw.randint(1, 4096))


def nothing(data: bytes, draw: random.Random) -> bytes:
    return b""


def zeros(data: bytes, draw: random.Random) -> bytes:
    return bytes(min(len(data), 4096))


def web_page(data: bytes, draw: random.Random) -> bytes:
    return b"<!DOCTYPE html><html><body>Please log in to download this file.</body></html>"


def forged_header(data: bytes, draw: random.Random) -> bytes:
    """A safetensors header that says what cannot be, over one tensor."""
    whole = save({"x_embedder.proj.weight": torch.zeros(8, 8)})
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    entry = header["x_embedder.proj.weight"]
    entry |= draw.choice(
        [
            {"shape": [2**62, 2**62]},
            {"shape": [HUGE]},
            {"shape": [-1, 8]},
            {"data_offsets": [0, 2**63]},
            {"data_offsets": [128, 0]},
            {"dtype": "F99"},
            {"dtype": "F4"},
        ]
    )
    text = json.dumps(draw.choice([header, [header], {"x": None}])).encode()
    return struct.pack("<Q", draw.choice([len(text), len(text), 2**63, 0])) + text + whole[8 + size :]


OF_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    cut, flip_bits, noise, nothing, zeros, web_page, forged_header,
)  # fmt: skip


# --- damage to content -----------------------------------------------------------------------------------------------


def dropped(tensors: Tensors, draw: random.Random) -> Tensors:
    for name in draw.sample(sorted(tensors), draw.randint(1, min(3, len(tensors)))):
        del tensors[name]
    return tensors


def renamed(tensors: Tensors, draw: random.Random) -> Tensors:
    name = draw.choice(sorted(tensors))
    tensors[name + "x"] = tensors.pop(name)
    return tensors


def reshaped(tensors: Tensors, draw: random.Random) -> Tensors:
    """One tensor in another shape: flat, with a dimension more, without one, or empty."""
    name = draw.choice(sorted(tensors))
    value = tensors[name]
    tensors[name] = draw.choice(
        [value[None], value.flatten()[:0], value.flatten()[:1].reshape(()), value.flatten()[1:]]
    )
    return tensors


def whole_numbers(tensors: Tensors, draw: random.Random) -> Tensors:
    dtype = draw.choice([torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool])
    names = draw.choice([sorted(tensors), [draw.choice(sorted(tensors))]])
    return tensors | {name: tensors[name].to(dtype) for name in names}


def eight_bits(tensors: Tensors, draw: random.Random) -> Tensors:
    """fp8 as nobody publishes it: without scales."""
    dtype = draw.choice([torch.float8_e4m3fn, torch.float8_e5m2])
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def not_numbers(tensors: Tensors, draw: random.Random) -> Tensors:
    names = [name for name, value in tensors.items() if value.is_floating_point() and value.numel()]
    name = draw.choice(sorted(names))
    value = tensors[name].clone()
    value.view(-1)[draw.randrange(value.numel())] = draw.choice([float("nan"), float("inf"), -float("inf")])
    return tensors | {name: value}


def stray_index(tensors: Tensors, draw: random.Random) -> Tensors:
    """One more tensor whose number, were it taken for the depth, asks for a billion layers."""
    numbered = [name for name in tensors if any(part.isdigit() for part in name.split("."))]
    if not numbered:
        return tensors | {f"blocks.{STRAY_INDEX}.x": torch.zeros(1)}
    parts = draw.choice(sorted(numbered)).split(".")
    place = draw.choice([at for at, part in enumerate(parts) if part.isdigit()])
    parts[place] = str(draw.choice([STRAY_INDEX, 50_000]))
    return tensors | {".".join(parts): torch.zeros(1)}


OF_TENSORS: tuple[Callable[[Tensors, random.Random], Tensors], ...] = (
    dropped, renamed, reshaped, whole_numbers, eight_bits, not_numbers, stray_index,
)  # fmt: skip


def more_than_stored(tensors: Tensors, draw: random.Random) -> Any:
    """One value that says it is gigabytes: a stride of 0."""
    name = draw.choice(sorted(tensors))
    return tensors | {name: torch.zeros(1).expand(*([2**15] * 2), 1)}


def no_tensors(tensors: Tensors, draw: random.Random) -> Any:
    return tensors | {draw.choice(sorted(tensors)): draw.choice([None, 3, "text", [1, 2], {"a": 1}])}


def odd_kinds(tensors: Tensors, draw: random.Random) -> Any:
    name = draw.choice(sorted(tensors))
    value = draw.choice(
        [torch.ones(2, 2).to_sparse(), torch.empty(4, device="meta"), torch.ones(2, dtype=torch.cfloat)]
    )
    return tensors | {name: value}


def no_table(tensors: Tensors, draw: random.Random) -> Any:
    return draw.choice([[], [1, 2], {}, 5, "text", None, list(tensors.values())[:1], {1: 2}, {"state_dict": [1]}])


def odd_names(tensors: Tensors, draw: random.Random) -> Any:
    return tensors | {draw.choice([7, None, (1, 2)]): torch.zeros(1)}


OF_PICKLES: tuple[Callable[[Tensors, random.Random], Any], ...] = (
    more_than_stored, no_tensors, odd_kinds, no_table, odd_names,
)  # fmt: skip


def damage(path: Path, content: Content, foreign: Content, draw: random.Random) -> str:
    """Write a damaged or forged file to `path`, one of many ways; returns which.

    content: what a whole file of this kind holds. foreign: that of another model.
    """
    ways: list[Any] = [*OF_BYTES, *OF_TENSORS, "foreign", "folder"]
    ways += OF_PICKLES if path.suffix != ".safetensors" else []
    way = draw.choice(ways)
    if way == "folder":
        path.mkdir(parents=True)
    elif way == "foreign":
        write(path, flat(foreign) if path.suffix == ".safetensors" else foreign)
    elif way in OF_BYTES:
        write(path, content)
        path.write_bytes(way(path.read_bytes(), draw))
    else:
        inner = flat(content)
        made = way(dict(inner), draw)
        nest = inner is not content and isinstance(made, dict) and way is not no_table
        outer = {key: made if value is inner else value for key, value in content.items()}
        write(path, outer if nest else made)
    return way if isinstance(way, str) else way.__name__
