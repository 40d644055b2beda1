"""Writing files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a file beside `path`, sync it and put it in place: a killed run leaves the old file whole.

    A failed write (a full disk) leaves no partial file behind. Returns the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        partial.chmod(0o644)  # safetensors makes files that only their owner may read
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)
    return path


def sync(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's names where the system lets one ask."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (9, 22):  # EBADF, EINVAL: this kind of file cannot be synced
            raise
    finally:
        os.close(handle)
