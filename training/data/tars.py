"""Photos in WebDataset shards, read at any place: the webdataset library reads them in a stream, from the beginning."""

from __future__ import annotations

import glob
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from .reading import IMAGE_SUFFIXES, PhotoError, read_photo

BLOCK = 512
"""Bytes; an archive ends with two blocks of zeros."""


@dataclass(frozen=True)
class Member:
    """Where a file's bytes are in an archive."""

    offset: int
    size: int


@dataclass(slots=True)
class TarPhoto:
    """The files of one sample: those that have a name up to its first dot in common."""

    archive: Path
    key: str
    members: dict[str, Member] = field(default_factory=dict)
    """By ending, lower case, without the first dot."""

    @property
    def image(self) -> Member | None:
        return next((member for ending, member in self.members.items() if f".{ending}" in IMAGE_SUFFIXES), None)

    @property
    def name(self) -> str:
        return f"{self.archive}/{self.key}"


class TarPhotos:
    """The samples with an image in uncompressed shards.

    pattern: an archive, a folder of archives, or names with braces or stars (`shards/{000..099}.tar`).
    note: told of samples without an image and of archives that break off; what comes before the break is used.
    Raises FileNotFoundError for a pattern without archives, ValueError for files that are none and for no photo in any.
    """

    def __init__(self, pattern: str, note: Callable[[str, str], object]):
        self.photos: list[TarPhoto] = []
        for archive in find_archives(pattern):
            found = samples(archive, note)
            self.photos += [photo for photo in found if photo.image is not None]
            empty = [photo for photo in found if photo.image is None]
            if empty:
                note(empty[0].name, f"there is no image in this sample, nor in {len(empty) - 1} others of its archive")
        if not self.photos:
            raise ValueError(f"there is no photo in the archives of {pattern}")

    def __len__(self) -> int:
        return len(self.photos)

    def name(self, index: int) -> str:
        return self.photos[index].name

    def picture(self, index: int) -> Image.Image:
        photo = self.photos[index]
        assert photo.image is not None
        return read_photo(read_member(photo.archive, photo.image))

    def text(self, index: int, ending: str) -> str | None:
        photo = self.photos[index]
        member = photo.members.get(ending.lower().lstrip("."))
        if member is None:
            return None
        try:
            return read_member(photo.archive, member).decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise PhotoError(f"its {ending} is no UTF-8 text") from None


def find_archives(pattern: str) -> list[Path]:
    """The shards that a pattern stands for, sorted. Raises FileNotFoundError naming what is missing."""
    place = Path(pattern).expanduser()
    if place.is_dir():
        found = sorted(place.glob("*.tar"))
    elif "{" in pattern:
        from braceexpand import braceexpand  # comes with webdataset

        found = [Path(name) for name in braceexpand(str(place))]
    else:
        found = [Path(name) for name in sorted(glob.glob(str(place)))]
    missing = [str(path) for path in found if not path.is_file()]
    if missing or not found:
        raise FileNotFoundError(f"there is no archive {missing[0] if missing else pattern}")
    return found


def samples(archive: Path, note: Callable[[str, str], object]) -> list[TarPhoto]:
    """What an archive holds, in its order."""
    found: dict[str, TarPhoto] = {}
    for name, member in members(archive, note):
        folder, slash, base = name.rpartition("/")
        stem, dot, ending = base.partition(".")
        if stem and dot:
            key = folder + slash + stem
            found.setdefault(key, TarPhoto(archive, key)).members.setdefault(ending.lower(), member)
    return list(found.values())


def members(archive: Path, note: Callable[[str, str], object]) -> Iterator[tuple[str, Member]]:
    """Names and places of the files that are wholly there. Reads the headers alone.

    Raises ValueError for a file that is no uncompressed archive.
    """
    length = archive.stat().st_size
    end = 0
    try:
        with tarfile.open(archive, "r:") as tar:
            for entry in tar:
                end = entry.offset_data + -(-entry.size // BLOCK) * BLOCK
                if entry.offset_data + entry.size > length:
                    break
                if entry.isfile() and not entry.issparse():
                    yield entry.name, Member(entry.offset_data, entry.size)
            whole = ends_in_zeros(archive, end)
    except tarfile.TarError as error:
        if length >= BLOCK and not begins_as_archive(archive):
            raise ValueError(f"{archive} is no uncompressed tar archive: {error}") from error
        whole = False
    if not whole:
        note(str(archive), f"the archive breaks off within {length} bytes; what comes before is used")


def begins_as_archive(archive: Path) -> bool:
    """Whether the first block has the mark of a tar header."""
    with archive.open("rb") as file:
        return file.read(BLOCK)[257:262] == b"ustar"


def ends_in_zeros(archive: Path, end: int) -> bool:
    """Whether the mark of an archive's end follows its last file."""
    with archive.open("rb") as file:
        file.seek(end)
        return file.read(BLOCK) == bytes(BLOCK)


def read_member(archive: Path, member: Member) -> bytes:
    """A file's bytes. Raises PhotoError when the archive has become shorter or is gone."""
    try:
        with archive.open("rb") as file:
            file.seek(member.offset)
            content = file.read(member.size)
    except OSError as error:
        raise PhotoError(f"its archive cannot be read ({error.strerror})") from error
    if len(content) != member.size:
        raise PhotoError("its archive ends before the file does")
    return content
