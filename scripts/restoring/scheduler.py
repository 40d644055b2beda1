"""Which photo goes to which host, and when: no clock, thread or network in it, so that it runs in a simulation too.

Every `now` is in seconds on one clock that never goes back.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

FIRST_REST, LONGEST_REST = 1.0, 60.0
"""Seconds that a host or photo rests after a failure; each further one doubles them."""
SLOW = 3.0
"""A photo that takes so many times the usual seconds is begun on another host, once nothing else is to do."""
COPIES = 3
"""Most attempts at one photo at a time."""
MOST_WAITS = 30
"""Hosts that end before a photo was sent do not count against it, so many times."""
MEMORY = 0.8
"""Weight of the past in a host's seconds a photo."""


@dataclass(eq=False)
class HostState:
    """What the scheduler knows of a host.

    others: jobs on it that are not ours. rests_until: no photo before then.
    """

    url: str
    up: bool = False
    others: int = 0
    seconds: float = 0.0
    finished: int = 0
    troubles: int = 0
    rests_until: float = 0.0
    running: set[Attempt] = field(default_factory=set)


@dataclass(eq=False)
class Attempt:
    """A photo on a host."""

    photo: str
    host: HostState
    begun: float
    number: int
    """How many times the photo was begun before that counted against it."""


@dataclass(eq=False)
class PhotoState:
    troubles: int = 0
    waits: int = 0
    avoid: set[str] = field(default_factory=set)
    prefers: str = ""
    reasons: set[str] = field(default_factory=set)
    attempts: list[Attempt] = field(default_factory=list)


class Scheduler:
    """Photos that wait, hosts with their load, and what failed.

    jobs: photos at a time on each host. retries: failures of a photo before it is set aside. seed: of the jitter.
    """

    def __init__(self, hosts: Iterable[str], jobs: int = 2, retries: int = 3, seed: int = 0):
        self.hosts = {url: HostState(url) for url in hosts}
        self.jobs = jobs
        self.retries = retries
        self._random = random.Random(seed)
        self._ready: deque[str] = deque()
        self._later: list[tuple[float, int, str]] = []
        self._photos: dict[str, PhotoState] = {}
        self._open: dict[str, HostState] = {}
        self._usual: float | None = None
        self._order = 0

    def add(self, photo: str, host: str = "") -> None:
        """A photo to restore. host: where a part of the work may be done already."""
        self._photos[photo] = PhotoState(prefers=host)
        self._ready.append(photo)

    def drop(self, photo: str) -> list[Attempt]:
        """A photo that is done, or not ours: forget it. Returns its attempts that still run."""
        state = self._photos.pop(photo, None)
        return [] if state is None else list(state.attempts)

    def knows(self, photo: str) -> bool:
        """Whether a photo waits or runs."""
        return photo in self._photos

    @property
    def remaining(self) -> int:
        """Photos that wait or run."""
        return len(self._photos)

    def up(self, url: str, jobs: int) -> None:
        """A host answered. jobs: how many it has, ours among them."""
        host = self.hosts[url]
        host.up, host.others = True, max(0, jobs - len(host.running))
        self._sort(host)

    def down(self, url: str) -> None:
        """A host does not answer."""
        self.hosts[url].up = False
        self._sort(self.hosts[url])

    def _sort(self, host: HostState) -> None:
        """Keep those apart that may have room: of a thousand busy hosts none is looked at."""
        if host.up and len(host.running) < self.jobs:
            self._open[host.url] = host
        else:
            self._open.pop(host.url, None)

    def next(self, now: float) -> Attempt | None:
        """Begin a photo, or a further copy of a late one; None when there is nothing to begin, or nowhere."""
        while self._later and self._later[0][0] <= now:
            self._ready.append(heapq.heappop(self._later)[2])
        free = [host for host in self._open.values() if self._is_free(host, now)]
        if not free:
            return None
        for _ in range(len(self._ready)):
            photo = self._ready.popleft()
            if photo not in self._photos:
                continue
            if (host := self._choose(self._photos[photo], free)) is not None:
                return self._begin(photo, host, now)
            self._ready.append(photo)
        return self._second(free, now)

    def _is_free(self, host: HostState, now: float) -> bool:
        # After a failure one photo at a time, until one comes back.
        jobs = 1 if host.troubles else self.jobs
        return host.up and host.rests_until <= now and len(host.running) < jobs

    def _choose(self, photo: PhotoState, free: list[HostState]) -> HostState | None:
        """The host that should be through with it first; None to wait for a better one than those that are free.

        A host where it failed gets it again only where there is no other.
        """
        usual = self._usual_seconds() or 1.0

        def expected(host: HostState) -> float:
            return (len(host.running) + host.others + 1) * (host.seconds or usual)

        for host in free:
            if host.url == photo.prefers:
                return host
        others = [host for host in free if host.url not in photo.avoid]
        if not others and any(host.up and host.url not in photo.avoid for host in self.hosts.values()):
            return None
        return min(others or free, key=expected)

    def _second(self, free: list[HostState], now: float) -> Attempt | None:
        usual = self._usual_seconds()
        if not usual:
            return None
        for newest in sorted(self._newest(), key=lambda attempt: (attempt.begun, attempt.photo)):
            if now - newest.begun <= SLOW * usual:
                break
            state = self._photos[newest.photo]
            has_it = {attempt.host for attempt in state.attempts}
            elsewhere = [host for host in free if host not in has_it]
            host = self._choose(state, elsewhere) if elsewhere else None
            if host is not None:
                return self._begin(newest.photo, host, now)
        return None

    def _newest(self) -> list[Attempt]:
        """The last begun attempt of each photo that runs and may get a further copy: copies are late at times, too."""
        running = {attempt.photo for host in self.hosts.values() for attempt in host.running}
        states = [self._photos[photo] for photo in running if photo in self._photos]
        return [
            max(state.attempts, key=lambda attempt: attempt.begun)
            for state in states
            if 0 < len(state.attempts) < COPIES
        ]

    def _usual_seconds(self) -> float:
        if self._usual is None:
            known = sorted(host.seconds for host in self.hosts.values() if host.finished)
            self._usual = known[(len(known) - 1) // 2] if known else 0.0
        return self._usual

    def _begin(self, photo: str, host: HostState, now: float) -> Attempt:
        state = self._photos[photo]
        attempt = Attempt(photo, host, now, state.troubles)
        state.attempts.append(attempt)
        host.running.add(attempt)
        self._sort(host)
        return attempt

    def _end(self, attempt: Attempt) -> PhotoState | None:
        attempt.host.running.discard(attempt)
        self._sort(attempt.host)
        state = self._photos.get(attempt.photo)
        if state is None or attempt not in state.attempts:
            return None
        state.attempts.remove(attempt)
        return state

    def finished(self, attempt: Attempt, now: float) -> list[Attempt]:
        """An attempt made the result. Returns those at the same photo that are of no use any more."""
        host = attempt.host
        self._end(attempt)
        took = now - attempt.begun
        host.seconds = took if not host.finished else MEMORY * host.seconds + (1 - MEMORY) * took
        host.finished += 1
        self._usual = None
        host.troubles, host.rests_until = 0, 0.0
        return self.drop(attempt.photo)

    def withdrawn(self, attempt: Attempt) -> None:
        """An attempt was called off. A photo that is wanted still, with no other attempt at it, waits again."""
        if (state := self._end(attempt)) is not None and not state.attempts:
            self._ready.append(attempt.photo)

    def host_failed(self, attempt: Attempt, now: float, counts: bool) -> bool:
        """The host failed, which rests now. counts: against the photo too, which may be what ended the host.

        Returns whether the photo has failed for good.
        """
        host = attempt.host
        host.troubles += 1
        host.rests_until = now + self._rest(host.troubles)
        state = self._photos.get(attempt.photo)
        if counts or (state is not None and state.waits >= MOST_WAITS):
            return self._photo_failed(attempt, now, "")
        if (state := self._end(attempt)) is not None and not state.attempts:
            state.avoid.add(host.url)
            state.waits += 1
            self._again(attempt.photo, now + FIRST_REST)
        return False

    def photo_failed(self, attempt: Attempt, now: float, reason: str) -> bool:
        """The host is well and the photo failed. Returns whether for good: by the same reason twice, or too often."""
        attempt.host.troubles = 0
        return self._photo_failed(attempt, now, reason)

    def _photo_failed(self, attempt: Attempt, now: float, reason: str) -> bool:
        if (state := self._end(attempt)) is None:
            return False
        state.troubles += 1
        state.avoid.add(attempt.host.url)
        again = bool(reason) and reason in state.reasons
        state.reasons.add(reason)
        if state.attempts:  # the other copy may still come through
            return False
        if again or state.troubles >= self.retries:
            return True
        self._again(attempt.photo, now + self._rest(state.troubles))
        return False

    def _rest(self, times: int) -> float:
        """Doubling, with a quarter of chance, so that clients do not come back all at once."""
        return min(LONGEST_REST, FIRST_REST * 2 ** min(times - 1, 16)) * self._random.uniform(0.75, 1.25)

    def _again(self, photo: str, at: float) -> None:
        self._order += 1
        heapq.heappush(self._later, (at, self._order, photo))

    def wake(self, now: float) -> float:
        """When something will be due by itself: a time, or infinity."""
        due = [self._later[0][0]] if self._later else []
        due += [host.rests_until for host in self.hosts.values() if host.up and host.rests_until > now]
        if not self._ready and (usual := self._usual_seconds()):
            # A little later: `next` asks for more than that.
            late = (attempt.begun + SLOW * usual + 0.001 for attempt in self._newest())
            due += [at for at in late if at > now]
        return min(due, default=math.inf)
