"""One run at a time in a folder: two would delete each other's checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCK = "running.json"
CLOCK = 2.0
"""Seconds by which the same process's start may be told differently."""


class InUse(ValueError):
    """Another process trains in the folder; the message names both and says what to do."""


def require_free(folder: Path) -> None:
    """Raises InUse while another process of this machine trains in `folder`.

    What a killed run or one of another machine left behind counts for nothing: the same command must go on.
    """
    holder = read(folder / LOCK)
    if holder is None or holder["machine"] != platform.node() or holder["process"] == os.getpid():
        return
    if started(holder["process"], holder["started"]):
        raise InUse(
            f"{folder} is in use: process {holder['process']} trains there. Wait until it ends or stop it (Ctrl-C), or "
            "set `out` to a new folder."
        )


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine out of `folder` within. Raises InUse as `require_free` does."""
    import psutil

    path = folder / LOCK
    mine = {"process": os.getpid(), "started": psutil.Process().create_time(), "machine": platform.node()}
    for _ in range(10):
        require_free(folder)
        path.unlink(missing_ok=True)
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(json.dumps(mine))
            break
        except FileExistsError:  # another process was faster: look again at whose it is
            continue
    try:
        yield
    finally:
        if read(path) == mine:
            path.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any] | None:
    """Who is said to train; None where the file is not there or not whole."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return {"process": int(holder["process"]), "started": float(holder["started"]), "machine": holder["machine"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def started(process: int, time: float) -> bool:
    """Whether the process is alive and the one that started then, not another that got its number since."""
    import psutil

    try:
        return abs(psutil.Process(process).create_time() - time) < CLOCK
    except psutil.Error:
        return False
