"""The run: photos to hosts, results into place, until nothing is left to do or something ends it."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import RestoreError
from .attempt import AttemptError, Made, Result, Spoilt, Worker
from .host import HostError, PhotoError, Withdrawn
from .hosts import Seen, Watch
from .ledger import Ledger, Outcome
from .scheduler import Attempt, Scheduler
from .sources import Photo

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
    without any host before the run ends. pause: seconds between two questions to a host. watching: whether more
    photos may come.
    """

    jobs: int = 2
    retries: int = 3
    patience: float = 300
    pause: float = 5
    watching: bool = False


@dataclass(frozen=True)
class Ended:
    """A thread is through with an attempt. there: whether its results are in place."""

    attempt: Attempt
    result: Result
    there: bool = False


@dataclass(frozen=True)
class Stop:
    signal: int


Event = Ended | Seen | Stop | list[Photo]


class Run:
    """One client's work on a target.

    worker: does the attempts, on its hosts. demand: is told again and again how many photos are left.
    """

    def __init__(
        self,
        worker: Worker,
        ledger: Ledger,
        photos: Sequence[Photo],
        settings: Settings,
        demand: Callable[[int], None] = lambda photos: None,
    ):
        self.settings = settings
        self.ledger = ledger
        self.progress = ledger.progress
        self.manifest = ledger.manifest
        self.hosts: dict[str, Any] = dict(worker.hosts)
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.scheduler = Scheduler(self.hosts, settings.jobs, settings.retries)
        self._worker = worker
        self._demand = demand
        self._watch = Watch(self.hosts, settings.pause, self.events.put, self._forget)
        self._calls: dict[Attempt, threading.Event] = {}
        self._threads: list[threading.Thread] = []
        self._putting: set[str] = set()
        self._lock = threading.Lock()
        self._first = list(photos)
        self._heard = time.monotonic()
        self._last_error = ""
        self._stopped = 0

    def run(self, seen: Sequence[Seen] = ()) -> Outcome:
        """Work until nothing is left. seen: hosts that answered already. Raises RestoreError."""
        self.ledger.read()
        self._wanted(self.ledger.add(self._first))
        for answer in seen:
            self._host_seen(answer)
        self._demand(self.scheduler.remaining)
        self._watch.start()
        try:
            while not self._stopped and (self.scheduler.remaining or self.ledger.theirs or self.settings.watching):
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
        return self.ledger.outcome(self._stopped)

    def _wanted(self, keys: Sequence[str]) -> None:
        hosts = self.manifest.hosts_before() if keys else {}
        for key in keys:
            self.scheduler.add(key, hosts.get(key, ""))

    def _begin(self) -> None:
        now = time.monotonic()
        while not self._stopped and (attempt := self.scheduler.next(now)) is not None:
            if not self.ledger.claim(attempt.photo):
                self.scheduler.drop(attempt.photo)
                self.scheduler.withdrawn(attempt)
                continue
            call = self._calls[attempt] = threading.Event()
            thread = threading.Thread(target=self._work, args=(attempt, call), daemon=True)
            self._threads = [each for each in self._threads if each.is_alive()] + [thread]
            thread.start()

    def _look_around(self) -> None:
        """What other clients are through with, or have left; and whether any host is left."""
        now = time.monotonic()
        if self.ledger.theirs and not self.scheduler.remaining:
            self._wanted(self.ledger.look_at_theirs())
        self._demand(self.scheduler.remaining)
        well = any(host.up and host.troubles < SICK for host in self.scheduler.hosts.values())
        if well or not self.scheduler.remaining:
            self._heard = now
        elif now - self._heard > self.settings.patience:
            raise RestoreError(f"lost {', '.join(self.hosts)} ({self._last_error}); run it again to go on")

    def _pause(self) -> float:
        return max(0.0, min(TICK, self.scheduler.wake(time.monotonic()) - time.monotonic()))

    def _work(self, attempt: Attempt, call: threading.Event) -> None:
        """In a thread: one attempt."""
        url, key = attempt.host.url, attempt.photo
        result, prompt = self._worker.attempt(self.ledger.photos[key], url, attempt.number, call)
        there = False
        if isinstance(result, Made) and not self.ledger.target.at_once:
            result, there = self._put(attempt, result)
        self.events.put(Ended(attempt, result, there))
        if isinstance(result, HostError | PhotoError | Withdrawn) and result.sent:
            self._watch.take_back(url, prompt)
        elif prompt:
            self._forget(prompt)

    def _put(self, attempt: Attempt, made: Made) -> tuple[Result, bool]:
        """In a thread: results to storage that takes its time, by the first of a photo's attempts that has them."""
        key = attempt.photo
        with self._lock:
            first = key not in self._putting
            self._putting.add(key)
        if not first:
            made.results.discard()
            return Withdrawn("another attempt has the results"), False
        result: Result = made
        try:
            sizes = self.ledger.sizes(key, made.results)
            self.manifest.check_free(key, sizes)
            made.results.put(self.ledger.target, list(sizes))
            return made, True
        except (AttemptError, RestoreError) as error:
            result = error
        except FileExistsError as error:
            result = Spoilt(str(error))
        except (FileNotFoundError, PermissionError) as error:
            result = RestoreError(f"{self.ledger.target} cannot be written: {error.strerror or error}")
        except OSError as error:
            result = PhotoError(f"cannot be written: {error.strerror or error}", kind=f"storage {attempt.number}")
        except Exception as error:  # one photo must not end the others
            result = Spoilt(f"unexpectedly {error!r}")
        made.results.discard()
        with self._lock:
            self._putting.discard(key)
        return result, False

    def _forget(self, prompt: str) -> None:
        """A job is off its host. Where the manifest cannot be written any more, the next run finds that out."""
        with contextlib.suppress(RestoreError):
            self.manifest.ended(prompt)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Ended):
            self._calls.pop(event.attempt)
            self._ended(event)
        elif isinstance(event, Seen):
            self._host_seen(event)
        elif isinstance(event, Stop):
            self._stopped = event.signal
        else:
            idle = [photo for photo in event if not self.scheduler.knows(photo.key)]
            self._putting -= {photo.key for photo in idle}
            self._wanted(self.ledger.replaced(idle))

    def _host_seen(self, seen: Seen) -> None:
        host = self.scheduler.hosts[seen.url]
        if seen.error:
            if host.up:
                self.progress.note(f"{seen.error}; it may come back")
            self._last_error = seen.error
            self.scheduler.down(seen.url)
        else:
            self.scheduler.up(seen.url, seen.jobs)

    def _ended(self, event: Ended) -> None:
        now, attempt, result = time.monotonic(), event.attempt, event.result
        key = attempt.photo
        if isinstance(result, Made):
            self._made(event, result, now)
        elif isinstance(result, RestoreError):
            raise result
        elif isinstance(result, Spoilt):
            self._call_off(self.scheduler.drop(key))
            self.scheduler.withdrawn(attempt)
            self._set_aside(attempt, result.reason)
        elif isinstance(result, Withdrawn):
            self.scheduler.withdrawn(attempt)
        elif isinstance(result, PhotoError):
            if self.scheduler.photo_failed(attempt, now, result.kind):
                self._set_aside(attempt, str(result))
        else:
            self._last_error = str(result)
            if not result.reached:
                self.scheduler.down(attempt.host.url)
                self._watch.look_now(attempt.host.url)
            if self.scheduler.host_failed(attempt, now, counts=result.sent or result.reached):
                self._set_aside(attempt, str(result))

    def _made(self, event: Ended, made: Made, now: float) -> None:
        attempt = event.attempt
        wanted = self.scheduler.knows(attempt.photo)
        self._call_off(self.scheduler.finished(attempt, now))
        try:
            if wanted:
                where = f" on {attempt.host.url}" if len(self.hosts) > 1 else ""
                self.ledger.made(attempt.photo, made, not event.there, where)
        except FileExistsError as error:
            self._set_aside(attempt, str(error))
        finally:
            made.results.discard()

    def _set_aside(self, attempt: Attempt, reason: str) -> None:
        self.scheduler.drop(attempt.photo)
        self.ledger.set_aside(attempt.photo, attempt.host.url, attempt.number + 1, reason)

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
                    self._made(event, event.result, time.monotonic())
            self.ledger.release()
