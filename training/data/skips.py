"""What was left out of the training data, gathered over the processes that read it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import weakref
from pathlib import Path


class Skips:
    """Name -> reason, in a temporary file that reading processes append to and the training process reads."""

    def __init__(self) -> None:
        handle, name = tempfile.mkstemp(prefix="realisr-skipped-", suffix=".jsonl")
        os.close(handle)
        self.path = Path(name)
        self._own: set[str] = set()
        weakref.finalize(self, delete_in, os.getpid(), self.path)

    def add(self, name: str, reason: str) -> None:
        """Note what is left out; the same name counts once."""
        if name in self._own:
            return
        self._own.add(name)
        line = json.dumps([name, reason]) + "\n"
        with self.path.open("ab", buffering=0) as file:  # one write for a line, so that processes do not mix
            file.write(line.encode())

    def __contains__(self, name: str) -> bool:
        return name in self._own

    def all(self) -> dict[str, str]:
        """Everything that any process has left out so far."""
        found: dict[str, str] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                name, reason = json.loads(line)
                found.setdefault(name, reason)
        return found


def delete_in(process: int, path: Path) -> None:
    """Delete the file in the process that made it; copies in others go without."""
    if os.getpid() == process:
        path.unlink(missing_ok=True)
