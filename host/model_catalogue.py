"""What of the catalogue's files is on this machine, and what to say about what is not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ..services.model_catalogue import VOSR_WEIGHT_FOLDERS, VOSR_WEIGHT_NAMES, Part, known, size_text
from .model_folders import INDEX_NAME, SINGLE_NAME, indexed_files, model_files

REFRESH = "Then refresh the node list (R)."
LONGEST_NAME = 200


def place_of(folder: str) -> str:
    """The host's folder of this name, of several the one that is called so."""
    places = folder_paths.get_folder_paths(folder)
    return next((place for place in places if Path(place).name == folder), places[0])


def chosen_file(folder: str, name: str) -> Path:
    """The file behind a loader's choice. Raises FileNotFoundError saying what to fetch and where to put it."""
    path = folder_paths.get_full_path(folder, name) if name in model_files(folder) else None
    if path is None:
        raise FileNotFoundError(missing_text(folder, str(name)))
    return Path(path)


def missing_text(folder: str, name: str, instead: str = "choose one that is there") -> str:
    """That `name` is not in a model folder, then what to do. instead: what one can do other than fetching it."""
    place = place_of(folder)
    cause = f"{name[:LONGEST_NAME] or 'The file'} is not in models/{folder}."
    part = known(folder, name)
    if part is None:
        return f'{cause} Put it into the folder "{place}" and refresh the node list (R), or {instead}.'
    if not part.page:
        return f'{cause} {part.note} It belongs into the folder "{place}".'
    return f"{cause} {how_to_fetch(part, place)}"


def how_to_fetch(part: Part, place: str) -> str:
    """The remedy for a part that is published: link, size, folder, licence."""
    files = f"the files of {part.name}: {', '.join(part.files)}" if part.is_folder else part.name.rpartition("/")[2]
    size = f" ({size_text(part.size)})" if part.size else ""
    target = Path(place) / (part.name if part.is_folder else Path(part.name).parent)
    told = f'Download {files}{size} from {part.where} into the folder "{target}".'
    return " ".join(filter(None, (told, part.note, REFRESH, f"Licence: {part.licence}.")))


@dataclass(frozen=True)
class Presence:
    """How much of a part is here."""

    found: int
    of: int
    absent: tuple[str, ...] = ()
    """Names of the files of a folder that is there in part."""

    @property
    def complete(self) -> bool:
        return self.found == self.of


def presence(part: Part, folders: Iterable[Path] = ()) -> Presence:
    """Whether a part is in the host's folders, under its name or in a sub-folder.

    folders: where else a part that is a folder may lie; the fullest counts.
    """
    if not part.is_folder:
        found = any(known(part.folder, name) == part for name in model_files(part.folder))
        return Presence(int(found), 1)
    roots = [Path(place) for place in folder_paths.get_folder_paths(part.folder)]
    candidates = [path for root in roots for path in (root / part.name, *root.glob(f"*/{part.name}"))]
    seen = [folder_presence(part, folder) for folder in (*candidates, *folders) if folder.is_dir()]
    return max(seen, key=lambda each: each.found / each.of, default=Presence(0, len(part.files)))


def folder_presence(part: Part, folder: Path) -> Presence:
    names = set(part.files)
    if INDEX_NAME in names and (folder / SINGLE_NAME).is_file():
        names = names - {INDEX_NAME} | {SINGLE_NAME}
    elif INDEX_NAME in names and (folder / INDEX_NAME).is_file():
        try:
            names |= set(indexed_files(folder / INDEX_NAME).values())
        except ValueError:  # damaged: as good as absent
            return Presence(len(names) - 1, len(names), (INDEX_NAME,))
    absent = sorted(name for name in names if not is_there(folder, name))
    return Presence(len(names) - len(absent), len(names), tuple(absent))


def is_there(folder: Path, name: str) -> bool:
    if name.rpartition("/")[0] == "checkpoints":
        # VOSR's weights, wherever its authors look for them.
        return any((folder / sub / file).is_file() for sub in VOSR_WEIGHT_FOLDERS for file in VOSR_WEIGHT_NAMES)
    return (folder / name).is_file()
