"""One ComfyUI: what it is asked for a photo, and what can go wrong there."""

from __future__ import annotations

import contextlib
import http.client
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from comfy_client import HTTPClient, PromptError, PromptInterrupted, raise_failure

from .graph import Graph, Job
from .pictures import check_picture

UPLOAD_FOLDER = "restore"
FIRST_WAIT, LONGEST_WAIT = 0.05, 1.0
"""Seconds between two questions about one job, at its start and later."""
REFUSALS = 3
"""Refused connections, odd answers, or looks for a job in vain, in a row, that are no accident."""


class AttemptError(Exception):
    """An attempt at a photo that came to nothing.

    sent: whether the host may have begun with it. reached: whether the host gave an answer.
    """

    def __init__(self, message: str, sent: bool = False, reached: bool = True):
        super().__init__(message)
        self.sent = sent
        self.reached = reached


class HostError(AttemptError):
    """The host does not answer, or not as a ComfyUI does."""


class PhotoError(AttemptError):
    """The host is well, but made nothing of this photo. kind: the same where it fails in the same way."""

    def __init__(self, message: str, sent: bool = False, kind: str = ""):
        super().__init__(message, sent)
        self.kind = kind or message

    @classmethod
    def of(cls, error: PromptError, sent: bool) -> PhotoError:
        return cls(str(error).strip(), sent, f"{error.node_id} {error.exception_type}")


class Withdrawn(AttemptError):
    """The attempt was called off."""


def is_final(error: HostError) -> bool:
    """Whether waiting does not help: nobody is there, or the answer is nonsense. A busy host or proxy gets its time."""
    cause = error.__cause__
    if isinstance(cause, urllib.error.HTTPError):
        return cause.code < 500
    return error.reached or isinstance(cause, ConnectionRefusedError)


@dataclass
class Host:
    """A ComfyUI at an address.

    silence: longest time without an answer, in seconds, after which it counts as gone.
    """

    url: str
    silence: float = 60
    follows_jobs: bool | None = None
    """Whether it has /api/jobs; None until it was asked."""
    sixteen_bits: bool = False
    client: HTTPClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = HTTPClient(self.url, silence=self.silence)

    def greet(self) -> int:
        """Whether it is there; returns how many jobs it has, of whomever. Raises HostError."""
        with self._talking():
            self.client.get("/system_stats")["system"].get("comfyui_version")
            if self.follows_jobs is None:
                self.follows_jobs = self._has("/api/jobs?limit=1&status=pending", "jobs")
                self.sixteen_bits = self._has("/object_info/SaveImageAdvanced", "SaveImageAdvanced")
            waiting = self.client.get("/prompt")["exec_info"]["queue_remaining"]
            return int(waiting)

    def _has(self, path: str, key: str) -> bool:
        try:
            return key in self.client.get(path)
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                raise
            return False
        except ValueError:  # a page instead of JSON: what some proxies say for 404
            return False

    def upload(self, content: bytes, name: str) -> str:
        """Raises PhotoError for one that it does not take, HostError."""
        with self._talking():
            try:
                return self.client.upload_bytes(content, name, UPLOAD_FOLDER)
            except urllib.error.HTTPError as error:
                if error.code == 413:
                    raise PhotoError(
                        f"{self.url} takes no file of {len(content):,} bytes (--max-upload-size)"
                    ) from None
                if error.code == 400:
                    raise PhotoError(f"{self.url} refused the file") from None
                raise

    def submit(self, graph: Graph, prompt_id: str) -> str:
        """Queue the workflow. Raises PhotoError where it is refused, HostError."""
        with self._talking(sent=True):
            try:
                return str(self.client.submit(graph, prompt_id))
            except PromptError as error:
                raise PhotoError.of(error, sent=False) from None
            except urllib.error.URLError as error:
                if isinstance(error.reason, ConnectionRefusedError):
                    raise HostError(f"{self.url} does not answer ({error.reason})", reached=False) from None
                raise

    def cancel(self, prompt_id: str) -> None:
        """Take a job out of the queue, or stop it. Raises HostError."""
        with self._talking():
            self.client.cancel(prompt_id)

    def follow(self, prompt_id: str, called_off: Event, timeout: float) -> dict[str, Any]:
        """Wait for the end of a job; returns node id -> what the node showed.

        timeout: longest time it may wait, and then run, in seconds. Raises HostError, PhotoError, Withdrawn. But for
        a job that ended, it may still be on the host.
        """
        heard = begun = time.monotonic()
        running, lost, refused, wait = False, 0, 0, FIRST_WAIT
        while True:
            try:
                state, outputs = self.look(prompt_id)
            except HostError as error:
                refused = refused + 1 if is_final(error) else 0
                if refused == REFUSALS or time.monotonic() - heard >= self.silence:
                    raise
            else:
                heard, refused = time.monotonic(), 0
                if outputs is not None:
                    return outputs
                lost = lost + 1 if state == "unknown" else 0
                if lost == REFUSALS:
                    raise HostError(f"{self.url} lost the job; was it restarted?", sent=True)
                if state == "running" and not running:
                    running, begun = True, heard
            if time.monotonic() - begun > timeout:
                kind = PhotoError if running else HostError
                raise kind(f"not {'finished' if running else 'begun'} by {self.url} after {timeout:g} s", sent=True)
            if called_off.wait(wait):
                raise Withdrawn("called off", sent=True)
            wait = min(LONGEST_WAIT, wait * 1.5)

    def look(self, prompt_id: str) -> tuple[str, dict[str, Any] | None]:
        """State of a job (pending, running, unknown or ended) and its outputs once it has ended well.

        Raises PhotoError for one that failed, HostError.
        """
        with self._talking(sent=True):
            try:
                return self._look_at_job(prompt_id) if self.follows_jobs else self._look_at_history(prompt_id)
            except PromptError as error:
                raise PhotoError.of(error, sent=True) from None
            except PromptInterrupted as error:
                raise PhotoError(f"someone stopped it on {self.url}: {error}", sent=True) from None

    def _look_at_job(self, prompt_id: str) -> tuple[str, dict[str, Any] | None]:
        try:
            job = self.client.get(f"/api/jobs/{prompt_id}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return "unknown", None
            raise
        state = job["status"]
        if state == "failed":
            raise_failure("execution_error", job.get("execution_error") or {})
        if state == "cancelled":
            raise_failure("execution_interrupted", {})
        if state == "completed":
            return "ended", dict(job["outputs"])
        return "running" if state == "in_progress" else "pending", None

    def _look_at_history(self, prompt_id: str) -> tuple[str, dict[str, Any] | None]:
        ended = self.client.get(f"/history/{prompt_id}").get(prompt_id)
        if ended is None:
            queue = self.client.get("/queue")
            for state, key in (("running", "queue_running"), ("pending", "queue_pending")):
                if any(item[1] == prompt_id for item in queue[key]):
                    return state, None
            return "unknown", None
        status = ended.get("status") or {}
        for kind, data in status.get("messages") or ():
            raise_failure(kind, data)
        if status.get("status_str") == "error":
            raise_failure("execution_error", {})
        return "ended", dict(ended["outputs"])

    def fetch(self, outputs: Mapping[str, Any], job: Job) -> list[bytes]:
        """The images that a finished job made, each looked through. Raises PhotoError for none, HostError."""
        with self._talking(sent=True):
            files = outputs.get(job.save_node, {}).get("images") or []
            if not files:
                raise PhotoError(f"node {job.save_node} ({job.save_class}) made no image", sent=True)
            contents = []
            for file in files:
                content = self.client.view({"subfolder": "", "type": "output", **file, "filename": file["filename"]})
                check_picture(content)
                contents.append(content)
            return contents

    def restore(
        self,
        job: Job,
        content: bytes,
        name: str,
        prompt_id: str,
        called_off: Event,
        timeout: float,
        sent: Callable[[str], None] = lambda prompt_id: None,
    ) -> list[bytes]:
        """All of it for one photo: files of the images that the workflow makes.

        name: of the uploaded file. prompt_id: a UUID that no job has. sent: told the job's id before it is queued (and
        again where an old host chooses its own). Raises PhotoError, HostError, Withdrawn.
        """
        uploaded = self.upload(content, name)
        if called_off.is_set():
            raise Withdrawn("called off")
        sent(prompt_id)
        given = self.submit(job.with_image(uploaded), prompt_id)
        if given != prompt_id:
            sent(given)
        return self.fetch(self.follow(given, called_off, timeout), job)

    @contextlib.contextmanager
    def _talking(self, sent: bool = False) -> Iterator[None]:
        """What a host can do wrong, as HostError."""
        try:
            yield
        except urllib.error.HTTPError as error:
            raise HostError(f"{self.url} answered {error.code} {error.reason}", sent) from error
        except (OSError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            at = cause if isinstance(cause, BaseException) else error
            raise HostError(
                f"{self.url} does not answer ({cause or type(cause).__name__})", sent, reached=False
            ) from at
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise HostError(f"{self.url} does not answer as a ComfyUI does ({error!r:.200})", sent) from error
