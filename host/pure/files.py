"""Where PURE's two parts lie: the released folder in the host's `LLM` folder, the VQGAN in `vae` or beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

from ...models.state_dict import first_few
from ...services.model_catalogue import PURE, PURE_FOLDER, VQ_FILE
from ..model_catalogue import chosen_file, how_to_fetch, place_of
from ..model_folders import (
    FOLDER_KEY,
    INDEX_NAME,
    SINGLE_NAME,
    indexed_files,
    llm_folders,
    llm_places,
    model_files,
    read_json,
)

VQ_NAME = "vq_ds8_c2i"
VQ_SUFFIXES = (".pt", ".pth", ".safetensors", ".ckpt")
VQ_AUTO = f"auto ({VQ_NAME})"
WHERE_FROM = PURE


@dataclass(frozen=True)
class RestorerFiles:
    """The parts of a released folder."""

    name: str
    folder: Path
    config: dict[str, Any]
    tokenizer: Path
    shards: tuple[Path, ...]
    """Weight files in order."""
    index: dict[str, str]
    """Tensor name -> file name, empty for a single file."""


def restorer_folders() -> dict[str, Path]:
    """Folders of the Chameleon family in the host's `LLM` folders, by relative names."""
    return llm_folders(lambda config: config.get("model_type") == "chameleon")


def restorer_choices() -> list[str]:
    return list(restorer_folders())


def vq_choices() -> list[str]:
    """The automatic choice, then every file of models/vae that could hold the VQGAN."""
    return [VQ_AUTO, *(name for name in model_files("vae") if name.endswith(VQ_SUFFIXES))]


def find_restorer(name: str) -> RestorerFiles:
    """The files behind a loader choice. Raises ValueError naming what is missing."""
    folder = restorer_folders().get(name)
    if folder is None:
        raise ValueError(
            f"There is no folder {str(name)[:200]} of a PURE model in {llm_places()}. "
            f"{how_to_fetch(PURE_FOLDER, place_of(FOLDER_KEY))}"
        )
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ValueError(f"{name} has no tokenizer.json. It is one of the files of {WHERE_FROM}.")
    shards, index = weight_files(name, folder)
    return RestorerFiles(name, folder, read_json(folder / "config.json"), tokenizer, shards, index)


def weight_files(name: str, folder: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """Every weight file the index names, or the single file. Raises ValueError naming absent ones."""
    index_file = folder / INDEX_NAME
    if not index_file.is_file():
        single = folder / SINGLE_NAME
        if single.is_file():
            return (single,), {}
        present = sorted(path.name for path in folder.glob("*.safetensors"))
        also = f" There are {first_few(present)}, which are no use without their index." if present else ""
        raise ValueError(f"{name} has neither {INDEX_NAME} nor {SINGLE_NAME}.{also} Download {WHERE_FROM} completely.")
    index = indexed_files(index_file)
    names = sorted(set(index.values()))
    absent = [file for file in names if not (folder / file).is_file()]
    if absent:
        raise ValueError(
            f"{name} is incomplete: {len(absent)} of {len(names)} weight files are missing: {first_few(absent)}. "
            f"Download them from {WHERE_FROM} into {folder}."
        )
    return tuple(folder / file for file in names), index


def find_vqgan_for(choice: str, name: str) -> Path:
    """The same for a model by its name in the loader, which may be absent."""
    return find_vqgan(choice, restorer_folders().get(name, Path(place_of(FOLDER_KEY)) / "PURE"))


def find_vqgan(choice: str, restorer: Path) -> Path:
    """The VQGAN behind a loader choice; `auto` looks in the restorer's folder, then in `vae`.

    Raises ValueError saying where it was looked for.
    """
    if choice != VQ_AUTO:
        return chosen_file("vae", choice)
    inside = [restorer / f"{VQ_NAME}{suffix}" for suffix in VQ_SUFFIXES]
    shared = [name for name in vq_choices() if Path(name).stem == VQ_NAME]
    found = [path for path in inside if path.is_file()]
    if found or shared:
        return found[0] if found else chosen_file("vae", shared[0])
    searched = ", ".join([str(restorer), *folder_paths.get_folder_paths("vae")])
    raise ValueError(f"{VQ_NAME}.pt is in none of {searched}. {how_to_fetch(VQ_FILE, place_of('vae'))}")
