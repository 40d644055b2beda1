"""Where photos come from, as lists that can be read at any place and from any process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from ...models.image import to_bytes
from . import procedural_images
from .builtin import TRAINING_PHOTOS, builtin_folder
from .config import ProceduralSettings, SourceSettings
from .reading import IMAGE_SUFFIXES, PhotoError, read_photo
from .tars import TarPhotos

Note = Callable[[str, str], object]
"""Told the name of what is left out, and why."""


class Source(Protocol):
    """Photos by number. Items are alike in every process and on every machine with the same files."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Stands for the photo in reports and in cache keys."""
        ...

    def picture(self, index: int) -> Image.Image:
        """The whole photo, RGB. Raises PhotoError for one that cannot be used."""
        ...

    def text(self, index: int, ending: str) -> str | None:
        """What is written beside the photo in a file of this ending (".txt"); None where there is none.

        Raises PhotoError for what is no UTF-8 text.
        """
        ...


class FilePhotos:
    """Image files, each with its texts beside it."""

    def __init__(self, files: Sequence[Path]):
        self.files = list(map(str, files))  # a third of the memory that paths take

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files[index]

    def picture(self, index: int) -> Image.Image:
        return read_photo(Path(self.files[index]))

    def text(self, index: int, ending: str) -> str | None:
        path = sidecar(Path(self.files[index]), ending)
        try:
            return decode_text(path.read_bytes(), path.name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PhotoError(f"{path.name} beside it cannot be read ({error.strerror})") from error


class TablePhotos(FilePhotos):
    """Image files of a parquet table, with their prompts in its column `prompt`."""

    def __init__(self, table: Path):
        paths, self.prompts = read_table(table)
        super().__init__([table.parent / path for path in paths])

    def text(self, index: int, ending: str) -> str | None:
        """The table's prompt; for other endings than that of prompts, what is beside the file."""
        if ending != ".txt":
            return super().text(index, ending)
        return None if self.prompts is None else self.prompts[index].as_py()


class ProceduralPhotos:
    """Images made by rules, each a function of the seed and its number."""

    def __init__(self, settings: ProceduralSettings, seed: int):
        self.settings, self.seed = settings, seed

    def __len__(self) -> int:
        return self.settings.count

    def name(self, index: int) -> str:
        return f"procedural/{self.settings.side}/{self.seed}/{index}"

    def picture(self, index: int) -> Image.Image:
        image = procedural_images.make_image(np.random.default_rng((self.seed, index)), self.settings.side)
        return Image.fromarray(to_bytes(torch.from_numpy(image)).numpy())

    def text(self, index: int, ending: str) -> str | None:
        return None


def make_source(settings: SourceSettings, seed: int, note: Note) -> Source:
    """The photos of one place. Raises FileNotFoundError for a place without any, ValueError for a table or an archive
    that is none, ModuleNotFoundError with the command that installs what is missing."""
    if settings.folder is not None:
        return FilePhotos(folder_images(settings.folder))
    if settings.tars is not None:
        return TarPhotos(settings.tars, note)
    if settings.parquet is not None:
        return TablePhotos(settings.parquet)
    if settings.builtin:
        return FilePhotos([builtin_folder() / name for name in TRAINING_PHOTOS])
    assert settings.procedural is not None  # SourceSettings has exactly one place
    return ProceduralPhotos(settings.procedural, seed)


def sidecar(photo: Path, ending: str) -> Path:
    """The file beside a photo with this ending in place of its own."""
    return photo.with_name(photo.stem + ending)


def folder_images(folder: Path) -> list[Path]:
    """Image files under a folder, sorted. Raises FileNotFoundError when there is none."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not hidden(path, folder)]
    if not found:
        missing = f"no image file ({', '.join(sorted(IMAGE_SUFFIXES))}) under {folder}"
        raise FileNotFoundError(missing if folder.is_dir() else f"there is no folder {folder}")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def hidden(path: Path, folder: Path) -> bool:
    """Whether a file is one that systems keep for themselves (.thumbnails/, ._photo.jpg)."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def decode_text(content: bytes, name: str) -> str:
    """A sidecar's text without a byte order mark and white space around it."""
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise PhotoError(f"{name} is no UTF-8 text") from None


def read_table(path: Path) -> tuple[list[str], Any]:
    """Paths and prompts of a parquet table; the prompts, an arrow array, are None where it has no such column."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise ModuleNotFoundError("tables of photos need pyarrow: pip install pyarrow") from None
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path}")
    try:
        columns = parquet.ParquetFile(path).schema_arrow.names
        if "image_path" not in columns:
            raise ValueError(f"{path} has no column image_path, only {', '.join(columns) or 'none'}")
        table = parquet.read_table(path, columns=[name for name in ("image_path", "prompt") if name in columns])
        paths = table["image_path"].to_pylist()
        prompts = table["prompt"].cast(arrow.large_string()).combine_chunks() if "prompt" in columns else None
    except arrow.ArrowException as error:
        raise ValueError(f"{path} is no parquet table with texts: {error}") from error
    if not paths or not all(isinstance(each, str) and each for each in paths):
        raise ValueError(f"{path} needs rows with a path in image_path in each; it has {len(paths)} rows")
    return paths, prompts
