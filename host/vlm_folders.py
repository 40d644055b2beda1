"""Where vision-language models of transformers lie: whole folders in `LLM`, and what these may ask for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..models.state_dict import first_few
from ..services.model_catalogue import LLAVA_FOLDER
from .model_catalogue import how_to_fetch, place_of
from .model_folders import FOLDER_KEY, INDEX_NAME, SINGLE_NAME, indexed_files, llm_folders, llm_places, read_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def vlm_folders() -> dict[str, Path]:
    """Folders of models with a vision part in the host's `LLM` folders, by relative names."""
    return llm_folders(lambda config: "vision_config" in config)


def vlm_choices() -> list[str]:
    return list(vlm_folders())


def find_vlm(name: str) -> Path:
    """The folder behind a loader choice. Raises ValueError naming what is missing in it."""
    folder = vlm_folders().get(name)
    if folder is None:
        raise ValueError(
            f"There is no folder {str(name)[:200]} of a vision-language model in {llm_places()}. Put a whole "
            f"transformers folder there, for example LLaVA's. {how_to_fetch(LLAVA_FOLDER, place_of(FOLDER_KEY))}"
        )
    missing = missing_files(folder)
    if missing:
        raise ValueError(
            f"{name} is incomplete: it lacks {first_few(missing, 5)}. Download the whole folder again, from where it "
            "was published."
        )
    check_numbers(folder)
    return folder


def missing_files(folder: Path) -> list[str]:
    """What a model's folder lacks, in words; weights are safetensors, in one file or as an index lists them."""
    missing = [
        " or ".join(names)
        for names in (TOKENIZER_FILES, PROCESSOR_FILES)
        if not any((folder / name).is_file() for name in names)
    ]
    if (folder / SINGLE_NAME).is_file():
        return missing
    index = folder / INDEX_NAME
    if not index.is_file():
        return [*missing, f"{SINGLE_NAME} or {INDEX_NAME} with its files"]
    shards = sorted(set(indexed_files(index).values()))
    return missing + [name for name in shards if not (folder / name).is_file()]


LAYERS = re.compile(r"(?:^|_)(?:layers|blocks|depths?|stages)$|^n_layers?$")
"""Names of settings that say how many layers are built."""
MOST_LAYERS = 1024
SIDES = ("height", "width", "shortest_edge", "longest_edge")
LONGEST_SIDE = 8192
MOST_PIXELS = 2**26
"""For processors whose longest_edge is a number of pixels."""
MOST_TOKENS = 2**16
"""Of a picture."""


def check_numbers(folder: Path) -> None:
    """Raises ValueError for settings that would have the library build layers, pictures or texts without an end."""
    tensors = min(MOST_LAYERS, tensor_count(folder))
    for _, name, value in numbers(read_json(folder / "config.json")):
        if LAYERS.search(name) and value > tensors:
            raise ValueError(
                f"config.json in {folder.name} asks for {value} layers ({name}), and its weights are enough for "
                f"{tensors} at most. Download the whole folder again, from where it was published."
            )
    for file in filter(Path.is_file, (folder / name for name in PROCESSOR_FILES)):
        for table, name, value in numbers(read_json(file)):
            counts_pixels = isinstance(longest := table.get("longest_edge"), int) and longest >= 2**20
            side = MOST_PIXELS if counts_pixels else LONGEST_SIDE
            most = side if name in SIDES else MOST_TOKENS if name.startswith("num_") else MOST_PIXELS
            if value > most:
                raise ValueError(
                    f"{file.name} in {folder.name} asks for {name} = {value}, and more than {most} is no setting of a "
                    "known model. Download the whole folder again, from where it was published."
                )


def tensor_count(folder: Path) -> int:
    """Of the weights in a folder; as many as there may be where their file is damaged, which loading it says."""
    if not (folder / SINGLE_NAME).is_file():
        return len(indexed_files(folder / INDEX_NAME))
    try:
        with safe_open(folder / SINGLE_NAME, "pt") as file:
            return len(file.keys())
    except (SafetensorError, OSError):
        return MOST_LAYERS


def numbers(table: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, int]]:
    """Whole numbers in a table and the tables and lists inside it: the table, the setting's name, the number."""
    waiting = [table]
    while waiting:
        current = waiting.pop()
        for name, value in current.items():
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, dict):
                    waiting.append(each)
                elif isinstance(each, int | float) and not isinstance(each, bool):
                    yield current, name, int(each) if abs(each) < 2**63 else 2**63
