"""Where VOSR diffusion models lie: official folders, their weights and single files in `diffusion_models`, and the
bundled one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import folder_paths
import torch
from torch import Tensor

from ...models.vosr.config import ARGS_KEY
from ...services.model_catalogue import VOSR, VOSR_WEIGHT_FOLDERS, VOSR_WEIGHT_NAMES
from ..model_catalogue import chosen_file
from ..model_folders import folders_with, model_files

BUNDLED = "VOSR nano (bundled)"
BUNDLED_FILE = Path(__file__).resolve().parents[2] / "weights" / "vosr_nano.safetensors"


@dataclass(frozen=True)
class VOSRFile:
    """A chosen checkpoint."""

    name: str
    path: Path
    args: dict[str, Any] = field(default_factory=dict)
    """Contents of the official folder's args.json, empty for a single file."""


def official_folders() -> dict[str, Path]:
    """Folders with an args.json inside the host's `diffusion_models` folders, by their relative names."""
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths("diffusion_models")):
        for folder in folders_with(root, "args.json"):
            found.setdefault(folder.relative_to(root).as_posix(), folder)
    return found


def single_files() -> list[str]:
    """Safetensors files of `diffusion_models` outside official folders."""
    folders = tuple(f"{name}/" for name in official_folders())
    names = model_files("diffusion_models")
    return [name for name in names if name.endswith(".safetensors") and not name.startswith(folders)]


def weights_of_folders() -> list[str]:
    """The weight files of official folders by relative names: the form in which the frontend recognises a model, and
    says that it is missing, before a run."""
    return [
        f"{name}/{place.relative_to(folder).as_posix()}"
        for name, folder in official_folders().items()
        for place in weight_places(folder)
        if place.is_file()
    ]


def model_choices() -> list[str]:
    """What the loader offers: the bundled model first, so that a new graph runs before any download.

    An official folder goes by its own name and by that of its weight file; they load alike.
    """
    return [BUNDLED, *official_folders(), *weights_of_folders(), *single_files()]


def weight_places(folder: Path) -> list[Path]:
    """Where the weights of an official folder may lie, in the order of choice."""
    return [folder / sub / name for sub in VOSR_WEIGHT_FOLDERS for name in VOSR_WEIGHT_NAMES]


def folder_weights(folder: Path) -> Path:
    """The weight file of an official folder. Raises ValueError listing the places looked at."""
    places = weight_places(folder)
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place.relative_to(folder)) for place in places)
    raise ValueError(
        f"{folder.name} has an args.json but no weights. Looked for {looked}. "
        f"Put ema_model.safetensors of {VOSR} in its checkpoints folder."
    )


def parse_args(text: str, source: str) -> dict[str, Any]:
    try:
        args = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{source} is not valid JSON ({error}). Download it again.") from error
    if not isinstance(args, dict):
        raise ValueError(f"{source} holds a {type(args).__name__}, not a table of settings. Download it again.")
    return args


def read_args(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}). Put the published file in its place.") from error
    return parse_args(text, str(path))


def find_model(name: str) -> VOSRFile:
    """The checkpoint behind a loader choice. Raises ValueError or FileNotFoundError saying what is missing."""
    if name == BUNDLED:
        return VOSRFile(name, BUNDLED_FILE)
    folders = official_folders()
    if name in folders:
        return VOSRFile(name, folder_weights(folders[name]), read_args(folders[name] / "args.json"))
    path = chosen_file("diffusion_models", name)
    # The innermost: folders may lie in folders.
    inside = max(
        (folder for folder in folders.values() if folder in path.parents), key=lambda f: len(f.parts), default=None
    )
    return VOSRFile(name, path, read_args(inside / "args.json") if inside else {})


def args_to_tensor(args: Mapping[str, Any]) -> Tensor:
    return torch.tensor(list(json.dumps(args).encode()), dtype=torch.uint8)


def stored_args(name: str, state_dict: dict[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The args a single file carries, if any; their tensor is taken out of the state dict.

    Raises ValueError when they cannot be read.
    """
    tensor = state_dict.pop(ARGS_KEY, None)
    if tensor is not None and (not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8 or tensor.ndim != 1):
        raise ValueError(f"{ARGS_KEY} in {name} is no text in bytes. Save the model again.")
    text = metadata.get(ARGS_KEY, "{}") if tensor is None else bytes(tensor.tolist()).decode(errors="replace")
    return parse_args(text, f"{ARGS_KEY} in {name}")
