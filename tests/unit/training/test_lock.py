"""One run at a time in a folder, and no run kept out by one that was killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from realisr.training.engine.lock import LOCK, InUse, holding, require_free


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until the test's end."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.communicate()


def occupy(folder: Path, **changes: Any) -> None:
    """Make the file of this process look as another's."""
    with holding(folder):
        holder = json.loads((folder / LOCK).read_text())
    (folder / LOCK).write_text(json.dumps({**holder, **changes}))


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    occupy(tmp_path, process=other.pid, started=psutil.Process(other.pid).create_time())
    before = (tmp_path / LOCK).read_text()
    with pytest.raises(InUse, match=rf"process {other.pid} trains there.*set `out`"):
        require_free(tmp_path)
    with pytest.raises(InUse), holding(tmp_path):
        pass
    assert (tmp_path / LOCK).read_text() == before


def test_what_a_dead_run_left_keeps_nobody_out(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    for changes in (
        {"process": other.pid, "started": 1.0},  # its number was given to another process since
        {"process": other.pid, "started": psutil.Process(other.pid).create_time(), "machine": "another"},
        {"process": 2**22 + 1},  # no process has it
    ):
        occupy(tmp_path, **changes)
        with holding(tmp_path):
            require_free(tmp_path)
        assert not (tmp_path / LOCK).exists()
    (tmp_path / LOCK).write_text("")
    with holding(tmp_path):
        pass


def test_the_folder_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), holding(tmp_path):
        raise ZeroDivisionError
    assert not (tmp_path / LOCK).exists()
