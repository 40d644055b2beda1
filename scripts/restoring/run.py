"""The run: photos to hosts, results into place, until nothing is left to do or something ends it."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import RestoreError, printable
from .attempt import Made, Recipe, Result, Spoilt, Worker, discard
from .host import Host, HostError, PhotoError, Withdrawn
from .hosts import Seen, Watch
from .manifest import CLAIMED, DONE, FAILED, Entry, Manifest
from .pictures import SUFFIX_OF
from .progress import Lines
from .results import has_result, row_of
from .scheduler import Attempt, Scheduler
from .sources import Photo, separator

TICK = 1.0
"""Longest time without looking after other clients' photos and silent hosts, in seconds."""
SICK = 5
"""Failures in a row after which a host does not count as one, though it answers."""
FAREWELL = 15.0
"""Seconds for taking jobs back at the end."""


@dataclass(frozen=True)
class Settings:
    """How a run goes about it.

    jobs: photos at a time on each host. retries: failures of a photo before it is set aside. patience: seconds
    without any host before the run ends. pause: seconds between two questions to a host. again: restore what has its
    result. watching: whether more photos may come.
    """

    jobs: int = 2
    retries: int = 3
    patience: float = 300
    pause: float = 5
    again: bool = False
    watching: bool = False


@dataclass(frozen=True)
class Ended:
    """A thread is through with an attempt."""

    attempt: Attempt
    result: Result


@dataclass(frozen=True)
class Stop:
    signal: int


Event = Ended | Seen | Stop | list[Photo]


@dataclass
class Outcome:
    """How a run ended. stopped: by which signal, 0 for none."""

    failures: int = 0
    total: int = 0
    stopped: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One client's work on a target folder."""

    def __init__(
        self,
        recipe: Recipe,
        photos: Sequence[Photo],
        target: Path,
        hosts: Sequence[Host],
        manifest: Manifest,
        settings: Settings,
        progress: Lines,
    ):
        self.recipe = recipe
        self.target = target
        self.settings = settings
        self.progress = progress
        self.manifest = manifest
        self.hosts = {host.url: host for host in hosts}
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.scheduler = Scheduler(self.hosts, settings.jobs, settings.retries)
        self._worker = Worker(recipe, manifest, self.hosts)
        self._watch = Watch(self.hosts, settings.pause, self.events.put, self._forget)
        self._photos: dict[str, Photo] = {}
        self._positions: dict[str, int] = {}
        self._before: dict[str, Entry] = {}
        self._ours: set[str] = set()
        self._theirs: set[str] = set()
        self._there: set[str] = set()
        self._failed: set[str] = set()
        self._calls: dict[Attempt, threading.Event] = {}
        self._threads: list[threading.Thread] = []
        self._first = list(photos)
        self._heard = time.monotonic()
        self._last_error = ""
        self._stopped = 0

    def run(self, seen: Sequence[Seen] = ()) -> Outcome:
        """Work until nothing is left. seen: hosts that answered already. Raises RestoreError."""
        self._before = self.manifest.entries()
        self._add(self._first, self.manifest.hosts_before())
        for answer in seen:
            self._host_seen(answer)
        self._watch.start()
        try:
            while not self._stopped and (self.scheduler.remaining or self._theirs or self.settings.watching):
                self._begin()
                self._look_around()
                self.progress.hosts(self.scheduler.hosts.values())
                with contextlib.suppress(queue.Empty):
                    self._handle(self.events.get(timeout=self._pause()))
        finally:
            self._leave()
        return self.outcome()

    def stop(self, number: int) -> None:
        """End soon, for a signal. Safe to call from its handler."""
        self.events.put(Stop(number))

    def outcome(self) -> Outcome:
        entries = self.manifest.entries()
        rows = [row_of(photo, entries.get(key), key in self._there) for key, photo in self._photos.items()]
        return Outcome(len(self._failed), len(self._photos), self._stopped, rows)

    def _add(self, photos: Sequence[Photo], hosts: dict[str, str]) -> None:
        """Photos to see to; those that have their results are only counted."""
        there, other = [], 0
        for photo in photos:
            key = photo.key
            self._positions.setdefault(key, len(self._positions) + 1)
            self._photos[key] = photo
        self.progress.total(len(self._photos))
        for photo in photos:
            key, entry = photo.key, self._before.get(photo.key)
            if not self.settings.again and has_result(photo, entry, self.target, self.recipe.form):
                self._there.add(key)
                there.append(f"{self._counter(key)}: {self._results_of(key, entry)} is there already")
                other += entry is not None and entry.recipe != self.recipe.digest
            else:
                self.scheduler.add(key, hosts.get(key, ""))
        self.progress.there(there)
        if other:
            self.progress.note(f"{other} of them by another workflow or other settings; --again restores them anew")

    def _counter(self, key: str) -> str:
        photo = self._photos[key]
        return f"[{self._positions[key]}/{len(self._photos)}] {photo.name}{photo.path.suffix}"

    def _results_of(self, key: str, entry: Entry | None) -> str:
        name = next(iter(entry.files), "") if entry is not None else ""
        return str(self.target / (name or f"{self._photos[key].name}{SUFFIX_OF[self.recipe.form]}"))

    def _begin(self) -> None:
        now = time.monotonic()
        while not self._stopped and (attempt := self.scheduler.next(now)) is not None:
            if attempt.photo not in self._ours and not self._claim(attempt.photo):
                self.scheduler.withdrawn(attempt)
                self.scheduler.drop(attempt.photo)
                continue
            call = self._calls[attempt] = threading.Event()
            thread = threading.Thread(target=self._work, args=(attempt, call), daemon=True)
            self._threads = [each for each in self._threads if each.is_alive()] + [thread]
            thread.start()

    def _claim(self, key: str) -> bool:
        """Whether a photo is ours; else another client has, or had, it."""
        entry = self.manifest.claim(key, self._before.get(key))
        if entry is None:
            self._ours.add(key)
            return True
        if entry.state == CLAIMED:
            if not self._theirs:
                self.progress.note("another client works on this folder too")
            self._theirs.add(key)
        else:
            self._theirs_ended(key, entry)
        return False

    def _theirs_ended(self, key: str, entry: Entry) -> None:
        self._theirs.discard(key)
        if entry.state == DONE:
            self._there.add(key)
            self.progress.done(f"{self._counter(key)}: restored by another client")
        elif entry.state == FAILED:
            self._failed.add(key)
            self.progress.failed(f"{self._counter(key)}: failed: {entry.reason}")

    def _look_around(self) -> None:
        """What other clients are through with, or have left; and whether any host is left."""
        now = time.monotonic()
        if self._theirs and not self.scheduler.remaining:
            for key in sorted(self._theirs):
                entry = self.manifest.claim(key, self._before.get(key))
                if entry is None:
                    self._theirs.discard(key)
                    self._ours.add(key)
                    self.scheduler.add(key, self.manifest.hosts_before().get(key, ""))
                elif entry.state != CLAIMED:
                    self._theirs_ended(key, entry)
        well = any(host.up and host.troubles < SICK for host in self.scheduler.hosts.values())
        if well or not self.scheduler.remaining:
            self._heard = now
        elif now - self._heard > self.settings.patience:
            raise RestoreError(f"lost {', '.join(self.hosts)} ({self._last_error}); run it again to go on")

    def _pause(self) -> float:
        return max(0.0, min(TICK, self.scheduler.wake(time.monotonic()) - time.monotonic()))

    def _work(self, attempt: Attempt, call: threading.Event) -> None:
        """In a thread: one attempt."""
        host = self.hosts[attempt.host.url]
        result, prompt = self._worker.attempt(self._photos[attempt.photo], host, attempt.number, call)
        self.events.put(Ended(attempt, result))
        if isinstance(result, HostError | PhotoError | Withdrawn) and result.sent:
            self._watch.take_back(host.url, prompt)
        elif prompt:
            self._forget(prompt)

    def _forget(self, prompt: str) -> None:
        """A job is off its host. Where the manifest cannot be written any more, the next run finds that out."""
        with contextlib.suppress(RestoreError):
            self.manifest.ended(prompt)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Ended):
            self._calls.pop(event.attempt)
            self._ended(event.attempt, event.result)
        elif isinstance(event, Seen):
            self._host_seen(event)
        elif isinstance(event, Stop):
            self._stopped = event.signal
        else:
            self._more(event)

    def _more(self, photos: list[Photo]) -> None:
        """Photos that came, or were replaced, while the run was under way."""
        idle = [photo for photo in photos if not self.scheduler.knows(photo.key)]
        for photo in idle:
            for keys in (self._there, self._failed, self._ours, self._theirs):
                keys.discard(photo.key)
            if (entry := self.manifest.get(photo.key)) is not None:
                self._before[photo.key] = entry
        self._add(idle, {})

    def _host_seen(self, seen: Seen) -> None:
        host = self.scheduler.hosts[seen.url]
        if seen.error:
            if host.up:
                self.progress.note(f"{seen.error}; it may come back")
            self._last_error = seen.error
            self.scheduler.down(seen.url)
        else:
            self.scheduler.up(seen.url, seen.jobs)

    def _ended(self, attempt: Attempt, result: Result) -> None:
        now, key = time.monotonic(), attempt.photo
        if isinstance(result, Made):
            self._made(attempt, result, now)
        elif isinstance(result, RestoreError):
            raise result
        elif isinstance(result, Spoilt):
            self._call_off(self.scheduler.drop(key))
            self.scheduler.withdrawn(attempt)
            self._set_aside(key, attempt, result.reason)
        elif isinstance(result, Withdrawn):
            self.scheduler.withdrawn(attempt)
        elif isinstance(result, PhotoError):
            if self.scheduler.photo_failed(attempt, now, result.kind):
                self._set_aside(key, attempt, str(result))
        else:
            self._last_error = str(result)
            if not result.reached:
                self.scheduler.down(attempt.host.url)
                self._watch.look_now(attempt.host.url)
            if self.scheduler.host_failed(attempt, now, counts=result.sent or result.reached):
                self._set_aside(key, attempt, str(result))

    def _made(self, attempt: Attempt, made: Made, now: float) -> None:
        key = attempt.photo
        wanted = self.scheduler.knows(key)
        self._call_off(self.scheduler.finished(attempt, now))
        try:
            if wanted:
                sizes = self.manifest.done(key, made.entry, self._places(key, made.partials), self.target)
                many = f" ({len(sizes)} images)" if len(sizes) > 1 else ""
                where = f" on {attempt.host.url}" if len(self.hosts) > 1 else ""
                self.progress.done(f"{self._counter(key)}: {made.entry.seconds:.1f} s{many}{where}")
        except FileExistsError as error:
            self._set_aside(key, attempt, str(error))
        except OSError as error:
            raise RestoreError(f"{error.filename} cannot be written: {error.strerror or error}") from error
        finally:
            discard(made.partials)

    def _places(self, key: str, partials: Sequence[Path]) -> list[tuple[Path, Path]]:
        """Where results go: NAME.png for one, NAME_1.png and so on for several."""
        name, suffix = self._photos[key].name, SUFFIX_OF[self.recipe.form]
        if len(partials) == 1:
            names = [name]
        else:
            between = separator(name, {photo.name for photo in self._photos.values()})
            names = [f"{name}{between}{number}" for number in range(1, len(partials) + 1)]
        places = [self.target / f"{each}{suffix}" for each in names]
        places[0].parent.mkdir(parents=True, exist_ok=True)
        return list(zip(partials, places, strict=True))

    def _set_aside(self, key: str, attempt: Attempt, reason: str) -> None:
        self.scheduler.drop(key)
        self._failed.add(key)
        reason = printable(reason)
        entry = Entry("", recipe=self.recipe.digest, host=attempt.host.url, attempts=attempt.number + 1, reason=reason)
        self.manifest.failed(key, entry)
        self.progress.failed(f"{self._counter(key)}: failed: {reason}")

    def _call_off(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            if attempt in self._calls:
                self._calls[attempt].set()

    def _leave(self) -> None:
        """Take back what is under way, keep what has just come, and give up our claims."""
        deadline = time.monotonic() + FAREWELL
        for call in self._calls.values():
            call.set()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._watch.stop()
        with contextlib.suppress(RestoreError):
            while not self.events.empty():
                event = self.events.get()
                if isinstance(event, Ended) and isinstance(event.result, Made):
                    self._made(event.attempt, event.result, time.monotonic())
            for key in self._ours:
                self.manifest.release(key)


@contextlib.contextmanager
def signals_to(stop: Callable[[int], None]):
    """Ctrl-C and requests to end go to `stop`; a second one ends at once, by KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    asked = False

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        stop(number)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
