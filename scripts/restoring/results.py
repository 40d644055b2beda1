"""Results in the target: which photos have theirs, and the report of a run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import RestoreError, printable
from .manifest import DONE, FAILED, Entry
from .pictures import SUFFIX_OF
from .sources import Photo
from .target import Target


def has_result(photo: Photo, entry: Entry | None, target: Target, form: str) -> bool:
    """Whether a photo needs nothing: what the manifest says it became is there, and the photo is still the same.

    A file that the manifest does not know counts when it is a whole picture, and so does one that was changed by hand.
    """
    if entry is None:
        name = f"{photo.name}{SUFFIX_OF[form]}"
        return target.size(name) is not None and target.is_whole(name)
    if entry.state != DONE or not entry.files or not all(path.endswith(SUFFIX_OF[form]) for path in entry.files):
        return False
    for name, size in entry.files.items():
        found = target.size(name)
        if found is None or (found != size and not target.is_whole(name)):
            return False
    return is_same(photo, entry)


def is_same(photo: Photo, entry: Entry) -> bool:
    """Whether a photo is what it was; one that cannot be read counts as the same, so that its result stays."""
    try:
        if photo.stamp() == entry.stamp:
            return True
        return hashlib.sha256(photo.path.read_bytes()).hexdigest()[:16] == entry.digest
    except OSError:
        return True


def write_report(path: Path, rows: Sequence[Mapping[str, Any]], outcome: Mapping[str, Any]) -> None:
    """JSON: the outcome, and for each photo what became of it (row_of). Raises RestoreError."""
    text = json.dumps({**outcome, "photos": list(rows)}, indent=1) + "\n"
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise RestoreError(f"the report {path} cannot be written: {error.strerror or error}") from error
    finally:
        if partial.exists():
            partial.unlink()


def row_of(photo: Photo, entry: Entry | None, there: bool) -> dict[str, Any]:
    """What became of a photo. there: whether it had a result before, which the manifest need not know."""
    row: dict[str, Any] = {"photo": printable(photo.path), "name": photo.key}
    if entry is None:
        return {**row, "state": DONE if there else "waiting"}
    if entry.state == FAILED:
        return {**row, "state": FAILED, "reason": entry.reason, "host": entry.host, "attempts": entry.attempts}
    if entry.state != DONE:
        return {**row, "state": "waiting"}
    row |= {"state": DONE, "results": sorted(entry.files), "host": entry.host, "seconds": entry.seconds}
    row |= {"seed": entry.seed, "attempts": entry.attempts}
    return row | ({"note": entry.note} if entry.note else {})
