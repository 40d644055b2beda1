"""Files behind URLs (s3://, gs://, memory://, ...), through fsspec, which is imported for the first of them."""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib
import itertools
import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from . import RestoreError, printable

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "sftp": "paramiko",
    "ssh": "paramiko",
}
"""What fsspec needs besides itself, by the part of a URL before ://."""
WHOLE_AT_ONCE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}
"""Storage where a file is there when all of it has come, and not before."""
CHANGES = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
"""What tells that a file was replaced, by the names that file systems have for it; the first that is there."""
TURNS: dict[Any, threading.Lock] = {}
"""By file systems that serve one thread at a time."""


def is_url(text: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


@functools.cache
def file_system(protocol: str, url: str) -> Any:
    """fsspec's file system for a URL. Raises RestoreError that gives the command which installs what it needs."""
    install = f"pip install {' '.join(dict.fromkeys(['fsspec', *filter(None, [PACKAGES.get(protocol)])]))}"
    try:
        return importlib.import_module("fsspec.core").url_to_fs(url)[0]
    except ImportError as error:
        raise RestoreError(f"{protocol}:// needs a package that is not here ({error}): {install}") from error
    except ValueError as error:
        raise RestoreError(f"{url} cannot be used: {error}") from error
    except Exception as error:  # credentials, odd settings: each file system raises its own
        raise RestoreError(f"{url} cannot be opened: {error!r:.300}") from error


@contextlib.contextmanager
def reached(url: str) -> Iterator[None]:
    """Whatever a file system raises, as OSError; what is one already says more."""
    try:
        yield
    except OSError as error:
        if error.strerror or not str(error):
            raise
        error.strerror = str(error)
        raise
    except Exception as error:  # those of botocore, aiohttp and others
        raise OSError(5, f"{type(error).__name__}: {error}"[:300], url) from error


def turn(system: Any) -> contextlib.AbstractContextManager[Any]:
    """Threads wait here for each other; not with those of fsspec's file systems that are asynchronous inside.

    Others may have a single connection, where one thread gets the other's answer: with sftp both wait for ever then.
    """
    return contextlib.nullcontext() if system.async_impl else TURNS.setdefault(system, threading.Lock())


@dataclass(frozen=True)
class RemoteFile:
    """A file or folder behind a URL, with pathlib's words for what photos need of it.

    known: size and time or tag, where a listing has told them. Every method raises OSError.
    """

    url: str
    known: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemoteFile:
        return RemoteFile(f"{self.url.rstrip('/')}/{name}")

    @property
    def protocol(self) -> str:
        return self.url.partition("://")[0].lower()

    @property
    def system(self) -> Any:
        root = "/".join(self.url.split("/")[:3])
        return file_system(self.protocol, root)

    @property
    def path(self) -> str:
        """As the file system has it."""
        return str(self.system._strip_protocol(self.url))

    @property
    def place(self) -> tuple[Any, str]:
        """The file system, of its host and account, and the path there: one for all ways to write a URL."""
        return self.system, self.path.rstrip("/")

    @property
    def name(self) -> str:
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def without_suffix(self) -> str:
        return self.url[: len(self.url) - len(self.suffix)]

    def read_bytes(self) -> bytes:
        with reached(self.url), turn(self.system):
            return bytes(self.system.cat_file(self.path))

    def write_bytes(self, content: bytes) -> None:
        """The file appears whole or not at all, in place of one that is there."""
        with reached(self.url), turn(self.system):
            if self.protocol in WHOLE_AT_ONCE:
                self.system.pipe_file(self.path, content)
                return
            folder, _, name = self.path.rpartition("/")
            partial = f"{folder}/.{name}.{uuid.uuid4().hex[:12]}.partial"
            self.system.makedirs(folder, exist_ok=True)
            try:
                self.system.pipe_file(partial, content)
                self.system.mv(partial, self.path)
            except BaseException:
                with contextlib.suppress(Exception):
                    self.system.rm_file(partial)
                raise

    def stamp(self) -> str:
        """Changes when the file is replaced."""
        if self.known:
            return self.known
        with reached(self.url), turn(self.system):
            return stamp_of_listing(self.system.info(self.path))

    def is_dir(self) -> bool:
        with reached(self.url), turn(self.system):
            return bool(self.system.isdir(self.path))

    def exists(self) -> bool:
        with reached(self.url), turn(self.system):
            return bool(self.system.exists(self.path))

    def walk(self, recursive: bool = True) -> Iterator[tuple[str, RemoteFile, int]]:
        """Files below this folder, sorted: path within it, file, and size in bytes; one listing for all of them."""
        with reached(self.url), turn(self.system):
            self.system.invalidate_cache()
            try:
                found = self.system.find(self.path, maxdepth=None if recursive else 1, detail=True)
            except FileNotFoundError:
                found = {}
        start = len(self.path.rstrip("/")) + 1
        for path, about in sorted(found.items()):
            if path != self.path:
                name = path[start:]
                yield name, RemoteFile((self / name).url, stamp_of_listing(about)), int(about.get("size") or 0)

    def matching(self) -> Iterator[tuple[str, RemoteFile]]:
        """Files that this URL names with wildcards, sorted: path from the first wildcard on, and file."""
        with reached(self.url), turn(self.system):
            self.system.invalidate_cache()
            found = self.system.glob(self.path, detail=True)
        protocol, _, rest = self.url.partition("://")
        fixed = itertools.takewhile(lambda part: not glob.has_magic(part), rest.split("/"))
        # fsspec's paths lack the host, so that a URL made of one may name another place.
        folder = RemoteFile(f"{protocol}://{'/'.join(fixed)}")
        start = len(folder.path.rstrip("/"))
        for path, about in sorted(found.items()):
            if about.get("type") == "file":
                file = RemoteFile(f"{folder.url}{path[start:]}", stamp_of_listing(about))
                yield path[start:].lstrip("/"), file


def stamp_of_listing(about: Mapping[str, Any]) -> str:
    changed = next((str(about[key]) for key in CHANGES if about.get(key)), "")
    return printable(f"{about.get('size')} {changed}")
