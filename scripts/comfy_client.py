"""ComfyUI's HTTP API, with nothing but the standard library: upload, queue, wait, fetch.

A script that has to follow progress and previews wants `comfy_server.ComfyClient`, which adds the websocket.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Workflow = Mapping[str, Mapping[str, Any]]
"""A graph in API form: node id -> {"class_type": ..., "inputs": {...}}."""


class PromptError(Exception):
    """ComfyUI refused a workflow, or a node of it failed: then which one, and what it raised."""

    def __init__(
        self,
        message: str,
        node_id: str = "",
        node_type: str = "",
        exception_type: str = "",
        exception_message: str = "",
    ):
        super().__init__(message)
        self.node_id = node_id
        self.node_type = node_type
        self.exception_type = exception_type
        self.exception_message = exception_message

    @classmethod
    def refused(cls, answer: Mapping[str, Any]) -> PromptError:
        """From the body of a 400 answer to /prompt."""
        error = answer.get("error", "no reason given")
        lines = [f"the workflow was refused: {error.get('message', error) if isinstance(error, Mapping) else error}"]
        listed = answer.get("node_errors")
        nodes = {key: found for key, found in listed.items() if isinstance(found, Mapping)} if listed else {}
        for node_id, found in nodes.items():
            lines += [
                f"node {node_id} ({found.get('class_type')}): {each.get('message')}: {each.get('details')}"
                for each in found.get("errors", ())
            ]
        first_id = next(iter(nodes), "")
        first_type = nodes[first_id].get("class_type", "") if nodes else ""
        return cls("\n".join(lines), first_id, first_type, "ValidationError", "\n".join(lines[1:]))

    @classmethod
    def failed(cls, data: Mapping[str, Any]) -> PromptError:
        """From an `execution_error` message."""
        keys = ("node_id", "node_type", "exception_type", "exception_message")
        node_id, node_type, exception_type, text = (str(data.get(key, "?")) for key in keys)
        traceback = "".join(str(line) for line in data.get("traceback") or ())
        message = f"node {node_id} ({node_type}) raised {exception_type}: {text}\n{traceback}"
        return cls(message, node_id, node_type, exception_type, text)


class PromptInterrupted(Exception):
    """The running workflow was cancelled."""


def raise_failure(kind: str, data: Mapping[str, Any]) -> None:
    """Raise PromptError or PromptInterrupted for a message that reports one; any other message is fine."""
    if kind == "execution_error":
        raise PromptError.failed(data)
    if kind == "execution_interrupted":
        raise PromptInterrupted(f"cancelled in node {data.get('node_id', '?')} ({data.get('node_type', '?')})")


@dataclass
class HTTPClient:
    """Talks to one ComfyUI. `url` such as http://127.0.0.1:8188, without a slash at its end."""

    url: str
    client_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    silence: float = 60
    """Longest wait for the next part of an answer, in seconds."""

    def request(self, path: str, data: bytes | None = None, content_type: str = "application/json") -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", data=data, headers={"Content-Type": content_type})
        with urllib.request.urlopen(request, timeout=self.silence) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self.request(path))

    def post(self, path: str, body: Any) -> Any:
        answer = self.request(path, json.dumps(body).encode())
        return json.loads(answer) if answer else None

    def object_info(self) -> dict[str, dict[str, Any]]:
        """Every registered node: id -> its inputs, outputs, category and so on."""
        return self.get("/object_info")

    def history(self, prompt_id: str) -> dict[str, Any]:
        return self.get(f"/history/{prompt_id}")[prompt_id]

    def interrupt(self) -> None:
        """Cancel the running workflow."""
        self.post("/interrupt", {})

    def cancel(self, prompt_id: str) -> None:
        """Take one workflow out of the queue, or stop it if it is the running one; others are left alone."""
        self.post("/queue", {"delete": [prompt_id]})
        self.post("/interrupt", {"prompt_id": prompt_id})

    def free(self) -> None:
        """Ask for every model and cached result to be dropped (done once the queue is idle)."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def upload_bytes(self, content: bytes, name: str, subfolder: str = "") -> str:
        """Put an image file into the input folder, over one of that name; returns the value for LoadImage's `image`."""
        boundary = uuid.uuid4().hex
        fields = {"overwrite": "true", "subfolder": subfolder}
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
            for key, value in fields.items()
        ]
        parts += [
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'.encode(),
            b"Content-Type: application/octet-stream\r\n\r\n",
            content,
            f"\r\n--{boundary}--\r\n".encode(),
        ]
        answer = json.loads(self.request("/upload/image", b"".join(parts), f"multipart/form-data; boundary={boundary}"))
        return f"{answer['subfolder']}/{answer['name']}" if answer["subfolder"] else answer["name"]

    def view(self, file: Mapping[str, str]) -> bytes:
        """The contents of a file that a run wrote."""
        query = urllib.parse.urlencode({key: file[key] for key in ("filename", "subfolder", "type")})
        return self.request(f"/view?{query}")

    def submit(self, workflow: Workflow, prompt_id: str = "") -> str:
        """Queue a workflow and return its prompt id: the given one (a UUID), except on an old ComfyUI.

        Raises PromptError when ComfyUI refuses it, or a part of it: ComfyUI runs the other outputs then, and this
        takes them out of the queue again.
        """
        try:
            chosen = {"prompt_id": prompt_id} if prompt_id else {}
            answer = self.post("/prompt", {"prompt": workflow, "client_id": self.client_id, **chosen})
            if answer.get("node_errors"):
                self.cancel(answer["prompt_id"])
                raise PromptError.refused({"error": {"message": "a part of it"}, **answer})
            return answer["prompt_id"]
        except urllib.error.HTTPError as error:
            if error.code == 400:
                raise PromptError.refused(json.loads(error.read())) from None
            raise

    def wait(self, prompt_id: str, timeout: float = 3600, interval: float = 0.3) -> dict[str, dict[str, Any]]:
        """Ask until a queued workflow has ended; returns its outputs, node id -> what the node showed.

        Raises PromptError, PromptInterrupted, or TimeoutError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            ended = self.get(f"/history/{prompt_id}").get(prompt_id)
            if ended is not None:
                for kind, data in ended["status"]["messages"]:
                    raise_failure(kind, data)
                return ended["outputs"]
            time.sleep(interval)
        raise TimeoutError(f"the workflow has not ended after {timeout:.0f} s")
