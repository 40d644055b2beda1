"""A fleet of hosts on a virtual clock, driven by the scheduler of scripts/restore.py: no thread, network or waiting.

A host works on one photo at a time, as ComfyUI does, and keeps those that wait in order. It dies with what it has and
comes back; some are slow for good, some photos hang on one host and would be through on another.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from restoring.scheduler import Attempt, Scheduler


@dataclass(frozen=True)
class Weather:
    """What happens to a fleet. Times in seconds.

    photo_seconds: on a host of speed 1. spread: standard deviation of the logarithm of a photo's work. slow_hosts:
    share of hosts of a fifth of the speed; the others are within a fifth of each other. between_deaths: of one host,
    in the mean. away: how long it is gone, in the mean. noticed: after which its photos are given up. hanging: share
    of attempts that take twenty times their time.
    """

    photo_seconds: float = 10.0
    spread: float = 0.4
    slow_hosts: float = 0.02
    between_deaths: float = 4 * 3600.0
    away: float = 600.0
    noticed: float = 15.0
    hanging: float = 0.002


CALM = Weather(spread=0.0, slow_hosts=0.0, between_deaths=float("inf"), hanging=0.0)


@dataclass
class Machine:
    url: str
    speed: float
    up: bool = True
    queue: deque[Attempt] = field(default_factory=deque)
    turn: int = 0
    """Counts what it began and lost, so that an event for something older is passed over."""
    since: float = 0.0
    uptimes: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Story:
    """How it went. makespan, bound: in seconds. scheduling: seconds of real time in the scheduler's code, in all."""

    photos: int
    makespan: float
    bound: float
    deaths: int
    copies: int
    doubled: int
    lost: int
    failed: int
    scheduling: float


class Fleet:
    def __init__(self, hosts: int, photos: int, weather: Weather, seed: int, jobs: int = 2):
        self._chance = random.Random(seed)
        self.weather = weather
        self.machines = {}
        for number in range(hosts):
            url = f"host-{number:04}"
            slow = self._chance.random() < weather.slow_hosts
            even = weather.spread == 0
            speed = 0.2 if slow else 1.0 if even else self._chance.uniform(0.9, 1.1)
            self.machines[url] = Machine(url, speed)
        self.scheduler = Scheduler(self.machines, jobs, retries=1000, seed=seed)
        self.work = {
            str(number): weather.photo_seconds * self._chance.lognormvariate(-(weather.spread**2) / 2, weather.spread)
            for number in range(photos)
        }
        self.results: dict[str, int] = {}
        self.failed: set[str] = set()
        self.now = 0.0
        self.deaths = self.copies = 0
        self.scheduling = 0.0
        self._events: list[tuple[float, int, str, Machine, Any]] = []
        self._order = 0

    def run(self) -> Story:
        for machine in self.machines.values():
            self.scheduler.up(machine.url, 0)
            self._later(self._chance.expovariate(1.0) * self.weather.between_deaths, "dies", machine)
        for photo in self.work:
            self.scheduler.add(photo)
        while self.scheduler.remaining:
            self._begin()
            wake = self._timed(self.scheduler.wake, self.now)
            if wake < self._events[0][0]:
                self.now = wake
                continue
            self.now, _, kind, machine, what = heapq.heappop(self._events)
            getattr(self, f"_{kind}")(machine, what)
        counts = list(self.results.values())
        return Story(
            len(self.work),
            self.now,
            self.bound(),
            self.deaths,
            self.copies,
            sum(count - 1 for count in counts),
            len(self.work) - len(counts) - len(self.failed),
            len(self.failed),
            self.scheduling,
        )

    def bound(self) -> float:
        """No schedule ends sooner: all work over the speeds of the hosts while they were there, nothing ever lost."""
        total = sum(self.work.values())
        spans = [(start, end, each.speed) for each in self.machines.values() for start, end in each.uptimes]
        spans += [(each.since, float("inf"), each.speed) for each in self.machines.values() if each.up]
        changes = sorted([(start, speed) for start, _, speed in spans] + [(end, -speed) for _, end, speed in spans])
        rate, before, done = 0.0, 0.0, 0.0
        for at, change in changes:
            if rate > 0 and done + rate * (at - before) >= total:
                return before + (total - done) / rate
            done += rate * (at - before) if rate > 0 else 0.0
            rate, before = rate + change, at
        raise AssertionError("the fleet never gets through")

    def _timed(self, call: Any, *given: Any) -> Any:
        start = time.perf_counter()
        answer = call(*given)
        self.scheduling += time.perf_counter() - start
        return answer

    def _later(self, seconds: float, kind: str, machine: Machine, what: Any = None) -> None:
        if seconds < float("inf"):
            self._order += 1
            heapq.heappush(self._events, (self.now + seconds, self._order, kind, machine, what))

    def _begin(self) -> None:
        while (attempt := self._timed(self.scheduler.next, self.now)) is not None:
            machine = self.machines[attempt.host.url]
            self.copies += len(self.scheduler._photos[attempt.photo].attempts) - 1
            machine.queue.append(attempt)
            if len(machine.queue) == 1:
                self._work(machine)

    def _work(self, machine: Machine) -> None:
        machine.turn += 1
        if machine.up and machine.queue:
            hangs = 20.0 if self._chance.random() < self.weather.hanging else 1.0
            self._later(self.work[machine.queue[0].photo] / machine.speed * hangs, "done", machine, machine.turn)

    def _done(self, machine: Machine, turn: int) -> None:
        if turn != machine.turn:
            return
        attempt = machine.queue.popleft()
        self.results[attempt.photo] = self.results.get(attempt.photo, 0) + self.scheduler.knows(attempt.photo)
        for other in self._timed(self.scheduler.finished, attempt, self.now):
            self._called_off(other)
        self._work(machine)

    def _called_off(self, attempt: Attempt) -> None:
        machine = self.machines[attempt.host.url]
        if attempt in machine.queue:
            running = machine.queue[0] is attempt
            machine.queue.remove(attempt)
            self.scheduler.withdrawn(attempt)
            if running:
                self._work(machine)

    def _dies(self, machine: Machine, _: None) -> None:
        self.deaths += 1
        machine.up = False
        machine.turn += 1
        machine.uptimes.append((machine.since, self.now))
        away = self._chance.expovariate(1.0) * self.weather.away
        self._later(min(self.weather.noticed, away), "noticed", machine)
        self._later(max(away, self.weather.noticed), "back", machine)

    def _noticed(self, machine: Machine, _: None) -> None:
        self.scheduler.down(machine.url)
        while machine.queue:
            attempt = machine.queue.popleft()
            if self._timed(self.scheduler.host_failed, attempt, self.now, True):
                self.scheduler.drop(attempt.photo)
                self.failed.add(attempt.photo)

    def _back(self, machine: Machine, _: None) -> None:
        machine.up, machine.since = True, self.now
        self.scheduler.up(machine.url, 0)
        self._later(self._chance.expovariate(1.0) * self.weather.between_deaths, "dies", machine)
