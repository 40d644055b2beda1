"""One attempt at a photo, from its file to results that wait beside their place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from . import RestoreError
from .graph import Job
from .host import AttemptError, Host, HostError, PhotoError
from .manifest import Entry, Manifest, stamp_of
from .pictures import PictureError, encoded, photograph
from .sources import Photo


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


@dataclass
class Made:
    """Files with the results of a photo, and what the manifest shall say of it."""

    entry: Entry
    partials: list[Path]


@dataclass(frozen=True)
class Spoilt:
    """A photo that cannot be restored anywhere, and why."""

    reason: str


Result = Made | Spoilt | AttemptError | RestoreError


class Worker:
    """Takes photos through a host. Safe to use from several threads."""

    def __init__(self, recipe: Recipe, manifest: Manifest, hosts: Mapping[str, Host]):
        self.recipe = recipe
        self.manifest = manifest
        self.hosts = hosts

    def attempt(self, photo: Photo, host: Host, number: int, called_off: Event) -> tuple[Result, str]:
        """One photo on one host; returns what came of it and the job's id, "" for one that was never queued.

        number: how often it was begun before.
        """
        prompts: list[str] = []
        try:
            return self._attempt(photo, host, number, called_off, prompts), (prompts or [""])[-1]
        except PictureError as error:
            return Spoilt(str(error)), ""
        except (AttemptError, RestoreError) as error:
            return error, (prompts or [""])[-1]
        except Exception as error:  # one photo must not end the others
            return Spoilt(f"unexpectedly {error!r}"), (prompts or [""])[-1]

    def _attempt(self, photo: Photo, host: Host, number: int, called_off: Event, prompts: list[str]) -> Made | Spoilt:
        start = time.monotonic()
        try:
            stamp = stamp_of(photo.path.stat())
            content = photo.path.read_bytes()
        except OSError as error:
            return Spoilt(f"cannot be read: {error.strerror or error}")
        digest = hashlib.sha256(content).hexdigest()[:16]
        prepared = photograph(content, photo.path.suffix.lower())
        # By content, so that two runs at a time never swap images under each other; and another name each time, so
        # that a host whose result was bad, or is gone, computes it again.
        again = f"-{number}" if number else ""
        name = f"{hashlib.sha256(prepared.upload).hexdigest()[:16]}{again}{prepared.suffix}"
        job = self.recipe.on(host)

        sent = Sent(self.manifest, photo, host, self.recipe.digest, stamp, prompts)
        files = self._from_before(photo, host, job, called_off, sent)
        if files is None:
            prompt = str(uuid.uuid4())
            files = host.restore(job, prepared.upload, name, prompt, called_off, self.recipe.timeout, sent)
        notes = {prepared.note} - {""}
        partials: list[Path] = []
        try:
            for file in files:
                result, lost = encoded(file, prepared, self.recipe.form, self.recipe.quality)
                notes |= {lost} - {""}
                partials.append(self.manifest.partial())
                write(partials[-1], result)
        except BaseException:
            discard(partials)
            raise
        entry = Entry(
            "",
            stamp=stamp,
            digest=digest,
            recipe=self.recipe.digest,
            host=host.url,
            seconds=round(time.monotonic() - start, 3),
            seed=self.recipe.job.seeds,
            attempts=number + 1,
            note="; ".join(sorted(notes)),
        )
        return Made(entry, partials)

    def _from_before(self, photo: Photo, host: Host, job: Job, called_off: Event, sent: Sent) -> list[bytes] | None:
        """What a client that was killed had this host make of the photo; its other jobs are taken back."""
        files = None
        for left in self.manifest.left(photo.key):
            try:
                if (
                    left.host == host.url
                    and left.recipe == self.recipe.digest
                    and left.stamp == sent.stamp
                    and not files
                ):
                    state, _ = host.look(left.prompt)
                    if state != "unknown":
                        sent(left.prompt)
                        files = host.fetch(host.follow(left.prompt, called_off, self.recipe.timeout), job)
                elif left.host in self.hosts:
                    self.hosts[left.host].cancel(left.prompt)
            except (HostError, PhotoError):
                pass
            self.manifest.ended(left.prompt)
        return files


@dataclass
class Sent:
    """Notes each job of a photo before its host has it."""

    manifest: Manifest
    photo: Photo
    host: Host
    recipe: str
    stamp: str
    prompts: list[str]

    def __call__(self, prompt: str) -> None:
        self.prompts.append(prompt)
        self.manifest.sent(self.photo.key, prompt, self.host.url, self.recipe, self.stamp)


def discard(partials: Iterable[Path]) -> None:
    for partial in partials:
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
