"""A ComfyUI that this process starts, on a free port of this machine, and that ends with it."""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from . import RestoreError

FOLDERS = ("input", "output", "temp", "user")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command_of(comfyui: str, port: int, scratch: Path, cpu: bool) -> list[str]:
    """The command for a ComfyUI folder, or one with {port} and, if it likes, {scratch} in it. Raises RestoreError.

    Hosts of one folder must not share the folder for results: two that save at a time take the same number.
    """
    if "{port}" in comfyui:
        words = shlex.split(comfyui, posix=sys.platform != "win32")
        return [word.replace("{port}", str(port)).replace("{scratch}", str(scratch)) for word in words]
    folder = Path(comfyui)
    if not (folder / "main.py").is_file():
        raise RestoreError(f"{comfyui} is no folder of ComfyUI (no main.py), and no command with {{port}} in it")
    within = ("bin/python", "Scripts/python.exe")
    pythons = [folder / venv / path for venv in ("venv", ".venv") for path in within]
    python = next((path for path in pythons if path.is_file()), Path(sys.executable))
    places = [word for name in FOLDERS for word in (f"--{name}-directory", str(scratch / name))]
    database = f"sqlite:///{scratch / 'user' / 'comfyui.db'}"
    command = [str(python), str(folder / "main.py"), "--listen", "127.0.0.1", "--port", str(port), *places]
    return [*command, "--database-url", database, "--disable-auto-launch", *(["--cpu"] if cpu else [])]


class OwnComfyUI:
    """comfyui: its folder, or a command (command_of). cpu: without a GPU. Raises RestoreError.

    Its scratch folder is there while it runs: the guard sees to the end of both, however this process ends.
    """

    def __init__(self, comfyui: str, cpu: bool = False):
        self.scratch = Path(tempfile.gettempdir()) / f"realisr-{uuid.uuid4().hex}"
        self.port = free_port()
        self.command = command_of(comfyui, self.port, self.scratch, cpu)
        self.process: subprocess.Popen[bytes] | None = None
        self._log: BinaryIO | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ensure(self, answers: Callable[[], bool], seconds: float) -> str:
        """Start it if it is not running, and wait until it answers. Returns why it does not, or ""."""
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        deadline = time.monotonic() + seconds
        while not answers():
            if self.process.poll() is not None:
                return f"ComfyUI ended with status {self.process.returncode}: {self.last_words()}"
            if time.monotonic() > deadline:
                return f"ComfyUI did not answer within {seconds:.0f} s: {self.last_words()}"
            time.sleep(0.2)
        return ""

    def _start(self) -> subprocess.Popen[bytes]:
        self.scratch.mkdir(mode=0o700, exist_ok=True)
        for name in FOLDERS:
            (self.scratch / name).mkdir(exist_ok=True)
        guard = [sys.executable, str(Path(__file__).with_name("guard.py")), str(self.scratch)]
        path = self.scratch / "comfyui.log"
        if self._log is not None:
            self._log.close()
        with path.open("ab") as log:
            self._log = path.open("rb")  # by now, as the guard removes it
            # In a session of its own, as Ray kills the group of an actor's process with it.
            return subprocess.Popen(
                [*guard, *self.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def last_words(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        text = self._log.read().decode("utf-8", errors="replace")
        return " | ".join(text.splitlines()[-3:])[-500:]

    def sweep(self, seconds: float) -> None:
        """Remove uploads and results that are older than any job can be: a hundred thousand fill every disk."""
        with contextlib.suppress(FileNotFoundError):  # the folders end with ComfyUI
            for name in ("input", "output", "temp"):
                for path in (self.scratch / name).rglob("*"):
                    with contextlib.suppress(OSError):
                        if path.is_file() and time.time() - path.stat().st_mtime > seconds:
                            path.unlink()
