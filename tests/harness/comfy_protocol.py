"""A small HTTP server that speaks ComfyUI's protocol and can be told to speak it badly, or not at all.

It doubles the size of uploaded pictures, so that results can be told apart and checked. Nothing of it takes time: a
job ends when it is queued, or when `release` is called.
"""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

Answer = tuple[int, bytes]
Fault = Callable[[str, bytes], Answer | None]
"""Gets path and body of a request; returns another answer than the right one, or None."""


class ComfyProtocol:
    """`with ComfyProtocol() as host:` on a free loopback port.

    has_jobs: whether it has /api/jobs. batch: images that a job makes. faults: "GET /view" -> Fault.
    """

    def __init__(self, has_jobs: bool = True, batch: int = 1, port: int = 0):
        self.has_jobs = has_jobs
        self.batch = batch
        self.faults: dict[str, Fault] = {}
        self.uploads: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.results: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.submitted: list[str] = []
        self.cancelled: list[str] = []
        self.held = False
        self.closing = threading.Event()
        self._changed = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_GET(self) -> None:
                outer._answer(self, "GET", b"")

            def do_POST(self) -> None:
                outer._answer(self, "POST", self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away is what some tests are about."""

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ComfyProtocol:
        # The default looks every half second whether to end.
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """Refuse connections from now on."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def hang(self, path: str, body: bytes) -> Answer | None:
        """A Fault: no answer before the end."""
        self.closing.wait()
        return 503, b""

    def wait_for(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        """Until a request has made it true."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout), f"never happened; requests: {self.requests[-20:]}"

    def release(self) -> None:
        """End the jobs that are held, and hold none from now on."""
        with self._changed:
            self.held = False
            for job in self.jobs.values():
                if job["status"] != "cancelled":
                    job["status"] = "completed"

    def _answer(self, handler: BaseHTTPRequestHandler, method: str, body: bytes) -> None:
        plain = re.sub(r"^/(api/jobs|history|object_info)/.*", r"/\1/", urlsplit(handler.path).path)
        route = f"{method} {plain}"
        with self._changed:
            self.requests.append(route)
            self._changed.notify_all()
        fault = self.faults.get(route)
        answer = fault(handler.path, body) if fault is not None else None
        if answer is None:
            with self._changed:
                answer = self._right(route, handler.path, body, handler.headers.get("Content-Type", ""))
                self._changed.notify_all()
        status, content = answer
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _right(self, route: str, path: str, body: bytes, kind: str) -> Answer:
        last = urlsplit(path).path.rpartition("/")[2]
        if route == "GET /system_stats":
            return said({"system": {"comfyui_version": "0"}, "devices": []})
        if route == "GET /prompt":
            waiting = sum(job["status"] == "in_progress" for job in self.jobs.values())
            return said({"exec_info": {"queue_remaining": waiting}})
        if route == "POST /upload/image":
            return self._upload(body, kind)
        if route == "POST /prompt":
            return self._submit(json.loads(body))
        if route == "POST /queue":
            return self._cancel(json.loads(body)["delete"])
        if route == "POST /interrupt":
            return self._cancel([json.loads(body)["prompt_id"]])
        if route == "GET /view":
            content = self.results.get(parse_qs(urlsplit(path).query)["filename"][0])
            return (404, b"") if content is None else (200, content)
        if self.has_jobs and route == "GET /api/jobs":
            return said({"jobs": [], "pagination": {}})
        if self.has_jobs and route == "GET /api/jobs/":
            return said(self.jobs[last]) if last in self.jobs else (404, b"{}")
        if route == "GET /history/":
            job = self.jobs.get(last)
            if job is None or job["status"] != "completed":
                return said({})
            return said({last: {"status": {"messages": []}, "outputs": job["outputs"]}})
        if route == "GET /queue":
            running = [[0, prompt] for prompt, job in self.jobs.items() if job["status"] == "in_progress"]
            return said({"queue_running": running, "queue_pending": []})
        return 404, b"404: Not Found"

    def _upload(self, body: bytes, kind: str) -> Answer:
        boundary = kind.partition("boundary=")[2].encode()
        part = next(each for each in body.split(b"--" + boundary) if b'filename="' in each)
        name = re.search(rb'filename="([^"]*)"', part)
        assert name is not None
        self.uploads[f"restore/{name[1].decode()}"] = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        return said({"name": name[1].decode(), "subfolder": "restore", "type": "input"})

    def _submit(self, asked: dict[str, Any]) -> Answer:
        graph, prompt = asked["prompt"], asked.get("prompt_id") if self.has_jobs else None
        prompt = prompt or f"job-{len(self.submitted)}"
        (load,) = (node for node in graph.values() if node["class_type"] == "LoadImage")
        (save,) = (key for key, node in graph.items() if node["class_type"].startswith("SaveImage"))
        self.submitted.append(load["inputs"]["image"])
        try:
            with Image.open(io.BytesIO(self.uploads[load["inputs"]["image"]])) as opened:
                image = opened.convert("RGB")
        except OSError as error:
            failure = {"node_id": "1", "node_type": "LoadImage", "exception_type": "OSError"}
            self.jobs[prompt] = {
                "status": "failed",
                "execution_error": {**failure, "exception_message": str(error).partition(" at ")[0]},
            }
            return said({"prompt_id": prompt, "node_errors": {}})
        file = io.BytesIO()
        image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(file, "PNG")
        names = [f"{prompt}_{index}.png" for index in range(self.batch)]
        self.results.update(dict.fromkeys(names, file.getvalue()))
        images = [{"filename": name, "subfolder": "", "type": "output"} for name in names]
        status = "in_progress" if self.held else "completed"
        self.jobs[prompt] = {"status": status, "outputs": {save: {"images": images}}}
        return said({"prompt_id": prompt, "node_errors": {}})

    def _cancel(self, prompts: list[str]) -> Answer:
        for prompt in prompts:
            if prompt in self.jobs and self.jobs[prompt]["status"] == "in_progress":
                self.jobs[prompt]["status"] = "cancelled"
                self.cancelled.append(prompt)
        return 200, b""


def said(answer: Any) -> Answer:
    return 200, json.dumps(answer).encode()
