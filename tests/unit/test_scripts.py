"""What a user runs starts as it is documented, and says so where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from _pack import ROOT


def start(script: str, cwd: Path, *arguments: str, folders: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, in any folder; folders: further ones of the pack that it may import from."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in folders)}
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("script", "folders"), [("train.py", ()), ("evaluate.py", ()), ("demo.py", ("dev",))])
def test_a_script_starts(tmp_path: Path, script: str, folders: tuple[str, ...]):
    done = start(script, tmp_path, "--help", folders=folders)
    assert done.returncode == 0, done.stderr
    assert f"usage: {script}" in done.stdout


def test_the_demo_by_itself_says_how_to_start_it(tmp_path: Path):
    done = start("demo.py", tmp_path)
    assert done.returncode == 1
    assert "needs comfy_server. Start it with `make demo`" in done.stderr
    assert "Traceback" not in done.stderr
