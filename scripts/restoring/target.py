"""Where results go: a folder of this machine, or one behind a URL."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

from . import RestoreError
from .pictures import PictureError, check_picture
from .storage import RemoteFile, is_url

FOLDER = ".realisr"
"""Name of the folder with a target's manifest."""


class Target(Protocol):
    """A folder for results. Names are paths below it, with forward slashes.

    records: folder of this machine for the manifest and unfinished results. at_once: whether to put a result in place
    takes no time, so that it can be done while the manifest is locked.
    """

    records: Path
    at_once: bool

    def size(self, name: str) -> int | None:
        """Bytes of a result; None where there is none, or a folder."""

    def is_whole(self, name: str) -> bool:
        """Whether a file that the manifest does not know, or not so, is a whole picture."""

    def read(self, name: str) -> bytes:
        """A result. Raises OSError."""

    def check(self, names: Sequence[str]) -> None:
        """Raises FileExistsError where a folder has one of the names."""

    def put(self, partial: Path, name: str) -> None:
        """An unfinished file becomes a result, whole or not at all, over one that is there. Raises OSError."""

    def prepare(self) -> None:
        """Look at what is there. Raises RestoreError for a target that cannot be used."""


def is_picture(read: Callable[[], bytes]) -> bool:
    """Whether a file is a whole picture; a folder and an empty file are none."""
    try:
        check_picture(read())
    except (OSError, PictureError):
        return False
    return True


class LocalTarget:
    """A folder of this machine, or one that is mounted here."""

    at_once = True

    def __init__(self, folder: Path, records: Path | None = None):
        self.folder = folder
        self.records = records or folder / FOLDER

    def __str__(self) -> str:
        return str(self.folder)

    def prepare(self) -> None:
        pass

    def size(self, name: str) -> int | None:
        path = self.folder / name
        try:
            return path.stat().st_size if path.is_file() else None
        except OSError:
            return None

    def is_whole(self, name: str) -> bool:
        return is_picture((self.folder / name).read_bytes)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def check(self, names: Sequence[str]) -> None:
        for name in names:
            if (self.folder / name).is_dir():
                raise FileExistsError(f"{name} is a folder")

    def put(self, partial: Path, name: str) -> None:
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(place)


class RemoteTarget:
    """A folder behind a URL. What is in it is listed once; a file there is taken for whole, as it came so."""

    at_once = False

    def __init__(self, folder: RemoteFile, records: Path | None = None):
        self.folder = folder
        self.records = records or records_of(folder.url)

    def __str__(self) -> str:
        return self.folder.url

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {name: size for name, _, size in self.folder.walk()}

    def prepare(self) -> None:
        try:
            _ = self._sizes
        except OSError as error:
            raise RestoreError(f"{self} cannot be read: {error.strerror or error}") from error

    def size(self, name: str) -> int | None:
        return self._sizes.get(name)

    def is_whole(self, name: str) -> bool:
        return bool(self._sizes.get(name))

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def check(self, names: Sequence[str]) -> None:
        pass  # storage has no folders that could be in the way

    def put(self, partial: Path, name: str) -> None:
        self.write(partial.read_bytes(), name)

    def write(self, content: bytes, name: str) -> None:
        (self.folder / name).write_bytes(content)
        self.written(name, len(content))

    def written(self, name: str, size: int) -> None:
        """A result that was put in place from elsewhere."""
        self._sizes[name] = size


def target_for(text: str, records: Path | None = None) -> LocalTarget | RemoteTarget:
    """A target by its path or URL. records: where the manifest goes, instead of the usual place."""
    return RemoteTarget(RemoteFile(text.rstrip("/")), records) if is_url(text) else LocalTarget(Path(text), records)


def records_of(url: str) -> Path:
    """Where this machine keeps the manifest of a target behind a URL."""
    home = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA")
    with contextlib.suppress(RuntimeError):
        base = Path(home) if home else Path.home() / ".local" / "state"
        readable = re.sub(r"[^A-Za-z0-9]+", "-", url).strip("-")[:60]
        return base / "realisr" / f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    raise RestoreError("this user has no home folder for the manifest; name a folder for it with --manifest")
