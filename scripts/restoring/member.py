"""What an actor of the cluster does: it has one ComfyUI, takes photos through it, and writes results to storage."""

from __future__ import annotations

import contextlib
import threading
import time

from . import RestoreError
from .attempt import Answer, Recipe, Restored, Task, perform
from .host import AttemptError, Host, HostError
from .own_comfyui import OwnComfyUI
from .target import target_for

SWEEP_SECONDS = 60.0
"""Between two looks for files of its ComfyUI that are of no use any more."""


class Member:
    """url: of the ComfyUI to use; with "" it starts one of its own, from the folder or command `comfyui`.

    target: URL of the storage for results; with "" they go back to the driver. Methods return errors, so that what
    the cluster raises is always the cluster's.
    """

    def __init__(self, recipe: Recipe, url: str, comfyui: str, cpu: bool, silence: float, target: str):
        self.recipe = recipe
        self.silence = silence
        self.own = None if url else OwnComfyUI(comfyui, cpu)
        self.host = Host(self.own.url if self.own else url, silence)
        self.target = target_for(target) if target else None
        self._calls: dict[str, threading.Event] = {}
        self._held: dict[str, list[bytes]] = {}
        self._starting = threading.Lock()
        self._swept = time.monotonic()

    def greet(self) -> tuple[int, str]:
        """How many jobs its ComfyUI has, or why it does not answer. Starts its own where it does not run."""
        with self._starting:
            try:
                if self.own is not None and (error := self.own.ensure(self._answers, self.silence)):
                    return 0, error
                return self.host.greet(), ""
            except (HostError, RestoreError, OSError) as error:
                self.host.follows_jobs = None
                return 0, str(error)

    def _answers(self) -> bool:
        try:
            self.host.greet()
        except HostError:
            return False
        return True

    def attempt(self, task: Task) -> tuple[Answer, list[int]]:
        """One photo: the answer, and the sizes of results. With storage to write to, those are held for `put`."""
        call = self._calls[task.prompt] = threading.Event()
        prompts: list[str] = []
        try:
            answer = perform(self.recipe, task, self.host, call, prompts.append)
        finally:
            del self._calls[task.prompt]
            self._sweep()
        if isinstance(answer, AttemptError) and answer.sent and prompts[-1:] != [task.prompt]:
            with contextlib.suppress(HostError):  # an adopted job, which the driver does not know
                self.host.cancel(prompts[-1])
        if not isinstance(answer, Restored):
            return answer, []
        sizes = [len(file) for file in answer.files]
        if self.target is not None:
            self._held[task.prompt] = answer.files
            answer.files = []
        return answer, sizes

    def _sweep(self) -> None:
        if self.own is not None and time.monotonic() - self._swept > SWEEP_SECONDS:
            self._swept = time.monotonic()
            self.own.sweep(2 * self.recipe.timeout + SWEEP_SECONDS)

    def put(self, prompt: str, names: list[str]) -> OSError | None:
        """Write what is held of a job to storage."""
        assert self.target is not None
        try:
            for content, name in zip(self._held[prompt], names, strict=True):
                (self.target.folder / name).write_bytes(content)
        except OSError as error:
            known = type(error) if type(error) in (FileNotFoundError, PermissionError) else OSError
            return known(error.errno or 5, error.strerror or str(error), error.filename)
        self._held.pop(prompt)
        return None

    def discard(self, prompt: str) -> None:
        self._held.pop(prompt, None)

    def call_off(self, prompt: str) -> None:
        if (call := self._calls.get(prompt)) is not None:
            call.set()

    def cancel(self, prompt: str) -> str:
        """Take a job off its ComfyUI; returns why that could not be."""
        try:
            self.host.cancel(prompt)
        except HostError as error:
            return str(error)
        return ""
