"""Reading and writing VOSR weights: the released folder layout and a single file that carries its arguments."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..models.vosr.config import ARGS_KEY, POSTERIOR_MEAN, VOSRConfig, strip_wrapper_prefix
from ..models.vosr.dit import VOSRDiT

FOLDER_WEIGHTS = Path("checkpoints") / "ema_model.safetensors"


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, then put it in place: a killed run leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.chmod(0o644)  # safetensors makes files that only their owner may read
    os.replace(partial, path)


def save_folder_weights(folder: Path, args: dict[str, Any], model: VOSRDiT) -> None:
    """args.json and checkpoints/ema_model.safetensors (float32), as the released models come."""
    text = json.dumps(args, indent=2) + "\n"
    write_atomically(folder / "args.json", lambda path: path.write_text(text, encoding="utf-8"))
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / FOLDER_WEIGHTS, lambda path: save_file(tensors, path))


def export(source: Path, target: Path, dtype: torch.dtype = torch.float16, one_step: bool = False) -> None:
    """One safetensors file of a trained folder (or of such a file), with its args.json in the metadata.

    one_step: mark the model as one trained at t = 1 alone, which runs in one unguided step and in no other way.
    """
    args, tensors = load_weights(source)
    if one_step:
        args = {**args, "distill_type": POSTERIOR_MEAN}
    metadata = {"format": "pt", ARGS_KEY: json.dumps(args)}
    halves = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    write_atomically(target, lambda path: save_file(halves, path, metadata=metadata))


def load_weights(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(args, tensors) of a folder or of an exported file. Raises ValueError when the arguments are missing."""
    weights = path / FOLDER_WEIGHTS if path.is_dir() else path
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if path.is_dir():
        return json.loads((path / "args.json").read_text(encoding="utf-8")), strip_wrapper_prefix(tensors)
    if ARGS_KEY not in metadata:
        raise ValueError(f"{path} has no '{ARGS_KEY}' in its metadata: give the folder with args.json instead")
    return json.loads(metadata[ARGS_KEY]), strip_wrapper_prefix(tensors)


def load_model(path: Path) -> tuple[dict[str, Any], VOSRDiT]:
    """(args, float32 network) of a folder or file, loaded strictly. Raises ValueError when args and tensors differ."""
    args, tensors = load_weights(path)
    config = VOSRConfig.from_shapes({name: tensor.shape for name, tensor in tensors.items()})
    differences = config.disagreements(args)
    if differences:
        raise ValueError(f"{path}: " + "; ".join(differences))
    model = VOSRDiT(config)
    model.load_state_dict(tensors)
    return args, model
