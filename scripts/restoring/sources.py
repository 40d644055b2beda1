"""Which photos there are, and what the result of each is called."""

from __future__ import annotations

import glob
import os
import posixpath
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from . import NoPhotos, RestoreError, printable
from .storage import RemoteFile, is_url

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
SHOWN = 10


@dataclass(frozen=True)
class Photo:
    """A photo, and the path of its result below the target: with forward slashes and without a suffix."""

    path: Path | RemoteFile
    name: str

    @property
    def key(self) -> str:
        """The name as a database takes it."""
        return printable(self.name)

    def stamp(self) -> str:
        """Changes when the file is replaced. Raises OSError."""
        if isinstance(self.path, RemoteFile):
            return self.path.stamp()
        found = self.path.stat()
        return f"{found.st_size} {found.st_mtime_ns}"


def find_photos(sources: Sequence[str], target: Path | str, recursive: bool = True) -> list[Photo]:
    """The photos of folders, patterns, lists (@FILE, or - for standard input), files and URLs, sorted by name.

    A folder's structure is kept below the target, which may be a URL. Raises RestoreError for sources that are not
    there or without photos, and for names that would meet.
    """
    behind = RemoteFile(str(target)) if is_url(str(target)) else None
    folder = Path(os.path.realpath(os.devnull if behind else target))
    photos: dict[str, Photo] = {}
    for source in sources:
        found = remote_photos(source, behind, recursive) if is_url(source) else photos_of(source, folder, recursive)
        for photo in found:
            path = photo.path
            photos.setdefault(path.url if isinstance(path, RemoteFile) else os.path.abspath(path), photo)
    if not photos:
        raise NoPhotos(f"{', '.join(sources)} has no images ({', '.join(sorted(SUFFIXES))})")
    every = sorted(photos.values(), key=lambda photo: (photo.name, str(photo.path)))
    check_names(every, behind or folder)
    return every


def remote_photos(source: str, target: RemoteFile | None, recursive: bool) -> Iterator[Photo]:
    """The photos of a URL: a folder, a file, or a pattern."""
    place = RemoteFile(source)
    if target is not None and target.place == place.place:
        raise RestoreError("the two folders are the same; results need one of their own")
    inside = f"{target.path.rstrip('/')}/" if target is not None and target.system == place.system else None
    try:
        if glob.has_magic(place.path) and not place.exists():
            found = list(place.matching())
        elif place.is_dir():
            found = [(name, file) for name, file, _ in place.walk(recursive)]
        elif place.exists():
            yield Photo(place, place.stem)
            return
        else:
            raise RestoreError(f"there is no folder or image {source}")
    except OSError as error:
        raise RestoreError(f"{source} cannot be read: {error.strerror or error}") from error
    for name, file in found:
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise RestoreError(f"{printable(file)} has a name that no file can have; rename it")
        hidden = any(part.startswith(".") for part in name.split("/"))
        if is_photo(name) and not hidden and not (inside and file.path.startswith(inside)):
            yield Photo(file, PurePosixPath(name).with_suffix("").as_posix())


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
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise RestoreError(f"the list {source[1:] or 'on standard input'} is empty")
    if all(is_url(line) for line in lines):
        yield from listed_urls(lines)
        return
    if any(is_url(line) for line in lines):
        raise RestoreError(f"the list {source[1:]} has URLs and paths; make a list of each")
    paths = [Path(line) for line in lines]
    whole = [os.path.abspath(path) for path in paths]
    try:
        shared = os.path.commonpath([os.path.dirname(path) for path in whole])
    except ValueError as error:
        raise RestoreError(f"the list {source[1:]} names files on several drives; pass one drive at a time") from error
    for path, absolute in zip(paths, whole, strict=True):
        yield Photo(path, named(Path(os.path.relpath(absolute, shared))))


def listed_urls(urls: Sequence[str]) -> Iterator[Photo]:
    """Photos of a list of URLs; the folders that all of them share are left off their names."""
    start = f"{posixpath.commonpath([PurePosixPath(url.partition('://')[2]).parent.as_posix() for url in urls])}/"
    for url in urls:
        name = url.partition("://")[2].removeprefix(start)
        if ".." in name.split("/"):
            raise RestoreError(f"{printable(url)} has a name that no file can have; rename it")
        yield Photo(RemoteFile(url), PurePosixPath(name).with_suffix("").as_posix())


def check_names(photos: Sequence[Photo], target: Path | RemoteFile) -> None:
    """Raises RestoreError where two photos have one result, or a result would replace a photo."""
    by_name: dict[str, list[Photo]] = defaultdict(list)
    for photo in photos:
        by_name[os.path.normcase(photo.name)].append(photo)
    if clashes := [same[0].name for same in by_name.values() if len(same) > 1]:
        raise RestoreError(f"several images would become one result: {some(clashes)}. Rename all but one of each.")
    folders: dict[Path, Path] = {}
    for photo in photos:
        if isinstance(photo.path, RemoteFile):
            meet = isinstance(target, RemoteFile) and photo.path.without_suffix() == (target / photo.name).url
        elif isinstance(target, RemoteFile):
            meet = False
        else:
            folder = photo.path.parent
            if folder not in folders:
                folders[folder] = Path(os.path.realpath(folder))
            meet = folders[folder] / photo.path.stem == target / photo.name
        if meet:
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
