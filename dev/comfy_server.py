"""A headless ComfyUI as a child process, and a client for its HTTP API and websocket.

with ComfyServer(host, base, {"realisr": ROOT}) as server:
    result = server.client.run(workflow)
    picture = server.client.image(result.images("9")[0])
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import websocket
from PIL import Image

from comfy_client import HTTPClient, PromptError, PromptInterrupted, Workflow, raise_failure
from host_env import Host, without_own_modules

__all__ = ["ComfyClient", "ComfyServer", "PromptError", "PromptInterrupted", "PromptResult", "Workflow"]

PREVIEW_IMAGE, NODE_TEXT = 1, 3
"""Event numbers of binary messages."""


@dataclass
class PromptResult:
    """A finished workflow.

    outputs: node id -> what its output nodes showed, e.g. {"images": [{"filename", "subfolder", "type"}]}.
    messages: every JSON message of the websocket about this run, as (type, data).
    previews: encoded preview images, in order of arrival.
    texts: what was shown under nodes, as (node id, text).
    """

    prompt_id: str
    outputs: dict[str, dict[str, Any]]
    messages: list[tuple[str, dict[str, Any]]]
    previews: list[bytes]
    texts: list[tuple[str, str]]
    seconds: float

    def images(self, node_id: str) -> list[dict[str, str]]:
        """The image files that a SaveImage or PreviewImage node wrote; fetch them with ComfyClient.image."""
        return self.outputs[node_id]["images"]

    def progress(self, node_id: str) -> list[tuple[float, float]]:
        """(value, max) of every progress message of a node."""
        return [
            (data["value"], data["max"])
            for kind, data in self.messages
            if kind == "progress" and data["node"] == node_id
        ]


@dataclass
class ComfyClient(HTTPClient):
    """Adds pictures and the websocket: progress messages and previews of a run."""

    def upload_image(self, image: Image.Image, name: str) -> str:
        """Put a PNG into the input folder; returns the value for LoadImage's `image`."""
        png = io.BytesIO()
        image.save(png, "PNG")
        return self.upload_bytes(png.getvalue(), name)

    def image(self, file: Mapping[str, str]) -> Image.Image:
        """Fetch an image that a run wrote (an entry of PromptResult.images)."""
        image = Image.open(io.BytesIO(self.view(file)))
        image.load()
        return image

    def run(
        self,
        workflow: Workflow,
        on_message: Callable[[str, dict[str, Any]], None] | None = None,
        timeout: float = 600,
    ) -> PromptResult:
        """Queue a workflow, follow it to its end and return what it made.

        on_message sees each message as it arrives (and may call interrupt()). `timeout` in seconds is the longest
        silence. Raises PromptError, PromptInterrupted, or TimeoutError.
        """
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}"
        connection = websocket.create_connection(address, timeout=timeout)
        try:
            start = time.monotonic()
            prompt_id = self.submit(workflow)
            messages, previews, texts = self._follow(connection, prompt_id, on_message)
        except websocket.WebSocketTimeoutException:
            raise TimeoutError(f"no word from {self.url} for {timeout:.0f} s") from None
        finally:
            connection.close()
        seconds = time.monotonic() - start
        for kind, data in messages:
            raise_failure(kind, data)
        return PromptResult(prompt_id, self.history(prompt_id)["outputs"], messages, previews, texts, seconds)

    @staticmethod
    def _follow(
        connection, prompt_id: str, on_message
    ) -> tuple[list[tuple[str, dict[str, Any]]], list[bytes], list[tuple[str, str]]]:
        messages: list[tuple[str, dict[str, Any]]] = []
        previews: list[bytes] = []
        texts: list[tuple[str, str]] = []
        while True:
            received = connection.recv()
            if isinstance(received, bytes):
                event = int.from_bytes(received[:4], "big")
                if event == PREVIEW_IMAGE:
                    previews.append(received[8:])
                elif event == NODE_TEXT:
                    end = 8 + int.from_bytes(received[4:8], "big")
                    texts.append((received[8:end].decode(), received[end:].decode()))
                continue
            message = json.loads(received)
            kind, data = message["type"], message["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            messages.append((kind, data))
            if on_message is not None:
                on_message(kind, data)
            if kind == "executing" and data["node"] is None:
                return messages, previews, texts


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_with_parent() -> None:
    """In the child, before it starts: ask Linux to end it when this process ends, however it ends."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


class ComfyServer:
    """`main.py --cpu` on a free loopback port, with a base directory of its own and just the given custom nodes.

    base: folder for models/, input/, output/, custom_nodes/ and the log; made when it is not there.
    custom_nodes: folder name -> folder; linked, so that the checkout is what runs.
    arguments: further ones for main.py.
    """

    def __init__(self, host: Host, base: Path, custom_nodes: Mapping[str, Path], arguments: Sequence[str] = ()):
        self.host = host
        self.base = base
        self.custom_nodes = custom_nodes
        self.arguments = arguments
        self.log_path = base / "server.log"
        self.client = ComfyClient("")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.client.url

    @property
    def models(self) -> Path:
        return self.base / "models"

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> ComfyServer:
        self._prepare_base()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _prepare_base(self) -> None:
        for name in ("models", "input", "output", "temp", "user", "custom_nodes"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        # What a fresh ComfyUI's LoadImage nodes show.
        if (example := self.host.comfyui / "input" / "example.png").is_file():
            shutil.copy(example, self.base / "input")
        for name, folder in self.custom_nodes.items():
            (self.base / "custom_nodes" / name).symlink_to(folder, target_is_directory=True)

    def _start(self, timeout: float = 500) -> None:
        port = free_port()
        command = [
            str(self.host.python),
            str(self.host.comfyui / "main.py"),
            "--cpu",
            "--listen",
            "127.0.0.1",
            "--port",
            str(port),
            "--base-directory",
            str(self.base),
            "--disable-auto-launch",
            "--disable-api-nodes",
            "--database-url",
            f"sqlite:///{self.base / 'user' / 'comfyui.db'}",
            *self.arguments,
        ]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.base,
                env=without_own_modules(os.environ),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self.client = ComfyClient(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with exit status {self.process.returncode}:\n{self.log()[-4000:]}")
            try:
                self.client.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise TimeoutError(f"ComfyUI did not answer within {timeout:.0f} s:\n{self.log()[-4000:]}")

    def kill(self) -> None:
        """End the server as a crash does, in the middle of whatever it does; it is gone when this returns."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        """Start it anew on the same folders, after `kill` or `stop`."""
        self._start()

    def stop(self) -> None:
        """End the server and whatever it started; it is gone when this returns."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
