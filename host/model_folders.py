"""What the host's model folders hold: weight files, and whole folders as published with config.json and safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths

FOLDER_KEY = "LLM"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# Other packs and extra_model_paths.yaml may have the key already; the host keeps each path once.
folder_paths.add_model_folder_path(FOLDER_KEY, os.path.join(folder_paths.models_dir, FOLDER_KEY))


def llm_places() -> str:
    """The `LLM` folders, for messages."""
    return ", ".join(folder_paths.get_folder_paths(FOLDER_KEY))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table. Raises ValueError, naming the file, when it is damaged or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a table. Download it again.")
    return content


def llm_folders(fits: Callable[[dict[str, Any]], bool]) -> dict[str, Path]:
    """Folders whose config.json `fits`, one or two levels deep, by names relative to their root.

    A damaged config.json counts as fitting, so that loading the folder says what is wrong.
    """
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(FOLDER_KEY)):
        for config in sorted(root.glob("*/config.json")) + sorted(root.glob("*/*/config.json")):
            if _fits_or_damaged(config, fits):
                found.setdefault(config.parent.relative_to(root).as_posix(), config.parent)
    return found


def _fits_or_damaged(config: Path, fits: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        values = read_json(config)
    except ValueError:
        return True
    return fits(values)


def model_files(folder: str) -> list[str]:
    """Files of one of the host's model folders, by relative names that are the same on every system.

    A workflow made on Windows names sub-folders with backslashes otherwise, and does not load elsewhere.
    """
    return [name.replace(os.sep, "/") for name in folder_paths.get_filename_list(folder)]
