"""What the host's model folders hold: weight files, and whole folders as published with config.json and safetensors."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import folder_paths

log = logging.getLogger(__name__)

FOLDER_KEY = "LLM"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
LONGEST_JSON = 64 * 2**20
"""Bytes. A tokenizer of the largest vocabularies has half of it."""

# Other packs and extra_model_paths.yaml may have the key already; the host keeps each path once.
folder_paths.add_model_folder_path(FOLDER_KEY, os.path.join(folder_paths.models_dir, FOLDER_KEY))


def llm_places() -> str:
    """The `LLM` folders, for messages."""
    return ", ".join(folder_paths.get_folder_paths(FOLDER_KEY))


class UnreadableFile(ValueError):
    """It cannot be opened, or is not a file."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table. Raises ValueError, naming the file, when it is damaged or holds something else; UnreadableFile, a
    ValueError too, when there is nothing to read."""
    try:
        if not path.is_file():  # a folder; or a pipe or a device, which have no end
            raise UnreadableFile(f"{path} is not a file. Download it again.")
        if path.stat().st_size > LONGEST_JSON:
            raise UnreadableFile(f"{path} has {path.stat().st_size} bytes, which no such file has. Download it again.")
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read ({error.strerror or error}). Check its rights.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnreadableFile):
            raise
        raise ValueError(f"{path} is not valid JSON ({error}). Download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a table. Download it again.")
    return content


def indexed_files(index: Path) -> dict[str, str]:
    """Tensor name -> file name, as the index of a folder in several files lists them. Raises ValueError as read_json
    does, for an index that lists none, and for names that lead out of the folder."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{index} has no weight_map. Download it again.")
    odd = [name for name in files.values() if not isinstance(name, str) or not name or Path(name).name != name]
    if odd:
        raise ValueError(f"{index} lists {str(odd[0])[:80]!r}, which is no file of its folder. Download it again.")
    return files


def folders_with(root: Path, name: str) -> Iterator[Path]:
    """Folders one or two levels below `root` that hold something of this name, in order.

    What cannot be looked into is left out: choices are listed while the host starts, and must not end that.
    """
    level = [root]
    for _ in range(2):
        level = [folder for parent in level for folder in _subfolders(parent)]
        yield from (folder for folder in level if os.path.lexists(folder / name))


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if os.path.isdir(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        _leave_out(folder, error.strerror)
        return []


@lru_cache(maxsize=256)
def _leave_out(folder: Path, reason: str) -> None:
    """Say so once: every loader lists the folders, and again whenever the node list is refreshed."""
    log.warning("RealISR: %s is not offered as a model: %s", folder, reason)


def llm_folders(fits: Callable[[dict[str, Any]], bool]) -> dict[str, Path]:
    """Folders whose config.json `fits`, one or two levels deep, by names relative to their root.

    A damaged config.json counts as fitting, so that loading the folder says what is wrong; a folder whose config.json
    cannot be opened is left out, with a line in the log.
    """
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(FOLDER_KEY)):
        for folder in folders_with(root, "config.json"):
            if _fits_or_damaged(folder, fits):
                found.setdefault(folder.relative_to(root).as_posix(), folder)
    return found


def _fits_or_damaged(folder: Path, fits: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        values = read_json(folder / "config.json")
    except UnreadableFile as error:
        _leave_out(folder, str(error))
        return False
    except ValueError:
        return True
    return fits(values)


def model_files(folder: str) -> list[str]:
    """Files of one of the host's model folders, by relative names that are the same on every system.

    A workflow made on Windows names sub-folders with backslashes otherwise, and does not load elsewhere.
    """
    return [name.replace(os.sep, "/") for name in folder_paths.get_filename_list(folder)]
