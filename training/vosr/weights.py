"""Reading and writing VOSR weights: the released folder and a single file that carries its arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...models.state_dict import require_keys, shapes_of, sizes_of
from ...models.vosr.config import ARGS_KEY, POSTERIOR_MEAN, VOSRConfig, check_args, strip_wrapper_prefix
from ...models.vosr.dit import VOSRDiT
from ..engine.files import write_atomically
from .tensor_files import read_tensors

FOLDER_WEIGHTS = Path("checkpoints") / "ema_model.safetensors"

DERIVED = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")
"""Tables that a file may lack."""


def write_folder(folder: Path, args: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Path]:
    """args.json and checkpoints/ema_model.safetensors in float32, as the released models come. Returns their paths."""
    text = json.dumps(args, indent=2) + "\n"
    whole = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    return [
        write_atomically(folder / FOLDER_WEIGHTS, lambda path: save_file(whole, path)),
        write_atomically(folder / "args.json", lambda path: path.write_text(text, encoding="utf-8")),
    ]


def write_file(path: Path, args: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Path:
    """One safetensors file with the args in its metadata; float32 where a value is too large for `dtype`."""
    metadata = {"format": "pt", ARGS_KEY: json.dumps(args)}
    stored = {name: narrowed(tensor.detach().cpu(), dtype) for name, tensor in tensors.items()}
    return write_atomically(path, lambda partial: save_file(stored, partial, metadata=metadata))


def narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = tensor.to(dtype)
    return (narrow if narrow.isfinite().all() else tensor.float()).contiguous()


def export_file(source: Path, target: Path, dtype: torch.dtype = torch.float16, posterior_mean: bool = False) -> Path:
    """A trained folder (or such a file) as one file. Raises ValueError when it carries no args.

    posterior_mean: mark it as trained at t = 1 alone, which runs in one unguided step and in no other way.
    """
    args, tensors = load_weights(source)
    if args is None:
        raise ValueError(f"{source} carries no '{ARGS_KEY}': give the folder with args.json instead")
    return write_file(target, {**args, "distill_type": POSTERIOR_MEAN} if posterior_mean else args, tensors, dtype)


def load_weights(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """(args, tensors by unprefixed name) of a folder or file; no args where a file carries none.

    device: on the meta device shapes alone are read. Raises FileNotFoundError, or ValueError for a damaged file.
    """
    weights = path / FOLDER_WEIGHTS if path.is_dir() else path
    tensors = strip_wrapper_prefix(read_tensors(weights, device))
    args = read_args(path)
    if args is not None:
        check_args(args)
    return args, tensors


def read_args(path: Path) -> dict[str, Any] | None:
    """The args of a folder or file, None where a file carries none."""
    if path.is_dir():
        text = (path / "args.json").read_text(encoding="utf-8")
    else:
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(ARGS_KEY, "null")
        except SafetensorError:  # a pickle carries none
            return None
    args = json.loads(text)
    if args is not None and not isinstance(args, dict):
        raise ValueError(f"the args of {path} are a {type(args).__name__}, no table")
    return args


def load_model(path: Path) -> tuple[dict[str, Any], VOSRDiT]:
    """(args, float32 network) of a folder or file, loaded strictly. Raises ValueError when args and tensors differ."""
    args, tensors = load_weights(path)
    if args is None:
        raise ValueError(f"{path} carries no '{ARGS_KEY}': give the folder with args.json instead")
    model = VOSRDiT(architecture(path, args, tensors))
    load_into(model, path, tensors)
    return args, model


def architecture(path: Path, args: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> VOSRConfig:
    """The sizes of a state dict. Raises ValueError when it is no VOSR network, or another than args say."""
    with sizes_of("VOSR network", path.name, tensors):
        config = VOSRConfig.from_shapes(shapes_of(tensors))
    differences = config.disagreements(args)
    if differences:
        raise ValueError(f"{path}: " + "; ".join(differences))
    return config


def load_into(model: VOSRDiT, path: Path, tensors: Mapping[str, Tensor], missing: tuple[str, ...] = ()) -> None:
    """Give a network, unless on the meta device, the weights of a file. missing: starts of names that may be absent.

    Raises ValueError naming the first tensors that do not fit.
    """
    own = model.state_dict()
    may_lack = {name for name in own if name.startswith(missing)} - tensors.keys()
    expected = {name: value for name, value in own.items() if name not in may_lack}
    require_keys("VOSR network", path.name, expected, tensors, DERIVED)
    if next(iter(own.values())).is_meta:
        return
    given = {name: value.float() for name, value in tensors.items() if name not in DERIVED}
    model.load_state_dict({**own, **given})
