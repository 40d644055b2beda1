"""Which photos there are, and what the result of each is called."""

from __future__ import annotations

import glob
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import NoPhotos, RestoreError, printable

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
SHOWN = 10


@dataclass(frozen=True)
class Photo:
    """A photo, and the path of its result below the target: with forward slashes and without a suffix."""

    path: Path
    name: str

    @property
    def key(self) -> str:
        """The name as a database takes it."""
        return printable(self.name)


def find_photos(sources: Sequence[str], target: Path, recursive: bool = True) -> list[Photo]:
    """The photos of folders, patterns, lists (@FILE, or - for standard input) and files, sorted by name.

    A folder's structure is kept below the target. Raises RestoreError for sources that are not there or without
    photos, and for names that would meet.
    """
    folder = Path(os.path.realpath(target))
    photos: dict[str, Photo] = {}
    for source in sources:
        for photo in photos_of(source, folder, recursive):
            photos.setdefault(os.path.abspath(photo.path), photo)
    if not photos:
        raise NoPhotos(f"{', '.join(sources)} has no images ({', '.join(sorted(SUFFIXES))})")
    found = sorted(photos.values(), key=lambda photo: (photo.name, photo.path))
    check_names(found, folder)
    return found


def photos_of(source: str, target: Path, recursive: bool) -> Iterator[Photo]:
    path = Path(source)
    if source == "-" or (source.startswith("@") and not path.exists()):
        yield from listed(source)
    elif path.is_dir():
        if Path(os.path.realpath(path)) == target:
            raise RestoreError("the two folders are the same; results need one of their own")
        for each in walk(path, target, recursive):
            yield Photo(each, named(each.relative_to(path)))
    elif os.path.lexists(path):
        yield Photo(path, path.stem)
    elif glob.has_magic(source):
        yield from matching(source, target)
    else:
        raise RestoreError(f"there is no folder or image {source}")


def named(relative: Path) -> str:
    return relative.with_suffix("").as_posix()


def is_photo(name: str) -> bool:
    """Hidden files are none: a Mac leaves a ._NAME beside each photo on a foreign disk."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def walk(folder: Path, target: Path, recursive: bool) -> Iterator[Path]:
    """Images below a folder, but not in the target, in hidden folders, or behind links to folders."""

    def failed(error: OSError) -> None:
        raise RestoreError(f"the folder {error.filename} cannot be read: {error.strerror}") from error

    for where, folders, files in os.walk(folder, onerror=failed):
        here = Path(where)
        folders[:] = sorted(
            name
            for name in folders
            if recursive and not name.startswith(".") and Path(os.path.realpath(here / name)) != target
        )
        yield from (here / name for name in sorted(files) if is_photo(name))


def matching(pattern: str, target: Path) -> Iterator[Photo]:
    """Images that a pattern such as photos/**/*.jpg names; the part before the first wildcard is left off names."""
    parts = Path(pattern).parts
    fixed = Path(*parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))])
    found = [Path(match) for match in sorted(glob.iglob(pattern, recursive=True))]
    kept = [
        path
        for path in found
        if is_photo(path.name) and not path.is_dir() and target not in Path(os.path.realpath(path)).parents
    ]
    if not kept:
        raise NoPhotos(f"no image matches {pattern}")
    for path in kept:
        yield Photo(path, named(path.relative_to(fixed)))


def listed(source: str) -> Iterator[Photo]:
    """Images of a list, a path on each line; what all of them share is left off their names."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source[1:]).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RestoreError(f"the list {source[1:]} cannot be read: {error}") from error
    paths = [Path(line) for line in text.splitlines() if line.strip()]
    if not paths:
        raise RestoreError(f"the list {source[1:] or 'on standard input'} is empty")
    whole = [os.path.abspath(path) for path in paths]
    try:
        shared = os.path.commonpath([os.path.dirname(path) for path in whole])
    except ValueError as error:
        raise RestoreError(f"the list {source[1:]} names files on several drives; pass one drive at a time") from error
    for path, absolute in zip(paths, whole, strict=True):
        yield Photo(path, named(Path(os.path.relpath(absolute, shared))))


def check_names(photos: Sequence[Photo], target: Path) -> None:
    """Raises RestoreError where two photos have one result, or a result would replace a photo."""
    by_name: dict[str, list[Photo]] = defaultdict(list)
    for photo in photos:
        by_name[os.path.normcase(photo.name)].append(photo)
    if clashes := [same[0].name for same in by_name.values() if len(same) > 1]:
        raise RestoreError(f"several images would become one result: {some(clashes)}. Rename all but one of each.")
    folders: dict[Path, Path] = {}
    for photo in photos:
        folder = photo.path.parent
        if folder not in folders:
            folders[folder] = Path(os.path.realpath(folder))
        if folders[folder] / photo.path.stem == target / photo.name:
            raise RestoreError(
                f"the result of {printable(photo.path)} would lie beside it, under its name; choose another target"
            )


def some(names: Iterable[str]) -> str:
    every = [printable(name) for name in names]
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")


def separator(name: str, names: set[str]) -> str:
    """What stands between a name and the number in a batch, so that no result of another photo is hit.

    names: those of all photos. `photo_1` is usual; with a photo of that name about it is `photo__1`.
    """
    between = "_"
    while any(f"{name}{between}{number}" in names for number in range(1, 100)):
        between += "_"
    return between
