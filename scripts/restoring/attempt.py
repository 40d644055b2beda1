"""One attempt at a photo, from its file to results that wait for their place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from . import RestoreError
from .graph import Job
from .host import AttemptError, Host, HostError, PhotoError
from .manifest import Entry, Manifest
from .pictures import PictureError, encoded, photograph
from .sources import Photo
from .target import Target


@dataclass(frozen=True)
class Recipe:
    """What is made of every photo.

    timeout: longest time a job may wait, and then run, in seconds. form: a key of pictures.SUFFIX_OF. quality: of
    JPEG and WebP, 1 to 100.
    """

    job: Job
    timeout: float = 3600
    form: str = "png"
    quality: int = 95

    @property
    def digest(self) -> str:
        """Another where results may differ."""
        quality = self.quality if self.form in ("jpeg", "webp") else 0
        return hashlib.sha256(f"{self.job.digest} {self.form} {quality}".encode()).hexdigest()[:16]

    def on(self, host: Host) -> Job:
        return self.job.in_sixteen_bits() if self.form == "tiff" and host.sixteen_bits else self.job


@dataclass(frozen=True)
class Task:
    """What is to be done in one attempt. Travels to other machines.

    number: how often the photo was begun before. prompt: id for the job. adopt: jobs that a client which was killed
    had the same host make of this photo. content: of the photo's file, where the host's side cannot read it.
    """

    photo: Photo
    stamp: str
    number: int
    prompt: str
    adopt: tuple[str, ...] = ()
    content: bytes | None = None


class Results(Protocol):
    """Results of a photo that wait for their place, wherever they are."""

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes of each."""

    def put(self, target: Target, names: Sequence[str]) -> None:
        """Raises FileExistsError where a folder has a name, OSError."""

    def discard(self) -> None:
        """What was not put is of no use any more."""


@dataclass
class Restored:
    """What a host made of a photo: the files of its results, or `held`, where they wait elsewhere."""

    files: list[bytes]
    digest: str
    seconds: float
    note: str = ""
    held: Results | None = None


@dataclass
class Made:
    """Results of a photo, and what the manifest shall say of it."""

    entry: Entry
    results: Results


@dataclass(frozen=True)
class Spoilt:
    """A photo that cannot be restored anywhere, and why."""

    reason: str


Answer = Restored | Spoilt | AttemptError | RestoreError
Result = Made | Spoilt | AttemptError | RestoreError
Sent = Callable[[str], None]
"""Is told the id of each job of a photo before its host has it."""
Perform = Callable[[Task, Any, Event, Sent], Answer]
"""Has a host make a photo's results: task, host, whether it was called off, and who is told of jobs. Never raises."""


def perform(recipe: Recipe, task: Task, host: Host, called_off: Event, sent: Sent) -> Answer:
    """The attempt where the host is talked to. Returns what went wrong, too, and never raises."""
    try:
        return restored(recipe, task, host, called_off, sent)
    except PictureError as error:
        return Spoilt(str(error))
    except (AttemptError, RestoreError) as error:
        return error
    except Exception as error:  # one photo must not end the others
        return Spoilt(f"unexpectedly {error!r}")


def restored(recipe: Recipe, task: Task, host: Host, called_off: Event, sent: Sent) -> Restored:
    """Raises PictureError, AttemptError."""
    start = time.monotonic()
    photo = task.photo
    content = read(task) if task.content is None else task.content
    prepared = photograph(content, photo.path.suffix.lower())
    # By content, so that two runs at a time never swap images under each other; and another name each time, so
    # that a host whose result was bad, or is gone, computes it again.
    again = f"-{task.number}" if task.number else ""
    name = f"{hashlib.sha256(prepared.upload).hexdigest()[:16]}{again}{prepared.suffix}"
    job = recipe.on(host)
    files = adopted(recipe, task, host, job, called_off, sent)
    if files is None:
        files = host.restore(job, prepared.upload, name, task.prompt, called_off, recipe.timeout, sent)
    results, notes = [], {prepared.note} - {""}
    for file in files:
        result, lost = encoded(file, prepared, recipe.form, recipe.quality)
        results.append(result)
        notes |= {lost} - {""}
    digest = hashlib.sha256(content).hexdigest()[:16]
    return Restored(results, digest, round(time.monotonic() - start, 3), "; ".join(sorted(notes)))


def read(task: Task) -> bytes:
    """A photo's file. Raises PictureError for one that cannot be read, PhotoError where that may change."""
    path = task.photo.path
    try:
        return path.read_bytes()
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        if isinstance(path, Path) or isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise PictureError(reason) from error
        # Not of one kind: a network may be well again, so that every try counts.
        raise PhotoError(reason, kind=f"storage {task.number}") from error


def adopted(recipe: Recipe, task: Task, host: Host, job: Job, called_off: Event, sent: Sent) -> list[bytes] | None:
    """What a client that was killed had this host make of the photo, if it is still there."""
    for prompt in task.adopt:
        try:
            if host.look(prompt)[0] != "unknown":
                sent(prompt)
                return host.fetch(host.follow(prompt, called_off, recipe.timeout), job)
        except (HostError, PhotoError):
            pass
    return None


class Worker:
    """Takes photos through hosts and keeps the manifest's list of jobs. Safe to use from several threads."""

    def __init__(self, recipe: Recipe, manifest: Manifest, hosts: Mapping[str, Any], do: Perform | None = None):
        self.recipe = recipe
        self.manifest = manifest
        self.hosts = hosts
        self._do = do or (lambda *given: perform(recipe, *given))

    def attempt(self, photo: Photo, url: str, number: int, called_off: Event) -> tuple[Result, str]:
        """One photo on one host; returns what came of it and the job's id, "" for one that was never queued.

        number: how often it was begun before.
        """
        prompts: list[str] = []
        try:
            stamp = photo.stamp()
        except OSError as error:
            return Spoilt(f"cannot be read: {error.strerror or error}"), ""

        def sent(prompt: str) -> None:
            prompts.append(prompt)
            self.manifest.sent(photo.key, prompt, url, self.recipe.digest, stamp)

        try:
            task = Task(photo, stamp, number, str(uuid.uuid4()), self._left(photo.key, url, stamp))
            answer = self._do(task, self.hosts[url], called_off, sent)
            for prompt in task.adopt:
                if prompt not in prompts[-1:]:
                    self.manifest.ended(prompt)
            result = self._made(answer, task, url) if isinstance(answer, Restored) else answer
        except RestoreError as error:
            result = error
        except Exception as error:  # one photo must not end the others
            result = Spoilt(f"unexpectedly {error!r}")
        return result, (prompts or [""])[-1]

    def _left(self, key: str, url: str, stamp: str) -> tuple[str, ...]:
        """Jobs that killed clients left on this host and that still do; others are taken back."""
        same = []
        for left in self.manifest.left(key):
            if (left.host, left.recipe, left.stamp) == (url, self.recipe.digest, stamp):
                same.append(left.prompt)
                continue
            if left.host in self.hosts:
                with contextlib.suppress(HostError):
                    self.hosts[left.host].cancel(left.prompt)
            self.manifest.ended(left.prompt)
        return tuple(same)

    def _made(self, answer: Restored, task: Task, url: str) -> Made:
        entry = Entry(
            "",
            stamp=task.stamp,
            digest=answer.digest,
            recipe=self.recipe.digest,
            host=url,
            seconds=answer.seconds,
            seed=self.recipe.job.seeds,
            attempts=task.number + 1,
            note=answer.note,
        )
        return Made(entry, answer.held or PartialFiles.of(answer.files, self.manifest))


@dataclass
class PartialFiles:
    """Results in files of this machine, beside the manifest."""

    partials: list[Path]
    sizes: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, files: Iterable[bytes], manifest: Manifest) -> PartialFiles:
        """Raises RestoreError where they cannot be written."""
        made = cls([])
        try:
            for content in files:
                made.partials.append(manifest.partial())
                made.sizes.append(len(content))
                write(made.partials[-1], content)
        except BaseException:
            made.discard()
            raise
        return made

    def put(self, target: Target, names: Sequence[str]) -> None:
        target.check(names)
        for partial, name in zip(self.partials, names, strict=True):
            target.put(partial, name)

    def discard(self) -> None:
        for partial in self.partials:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """A file, whole and on the disk, or none. Raises RestoreError."""
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise RestoreError(
            f"a result cannot be written to {path.parent.parent}: {error.strerror or error}; run this again to go on"
        ) from error
