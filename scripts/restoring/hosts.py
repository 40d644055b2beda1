"""Hosts come and go: who answers at the start, and a thread for each that goes on asking."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import RestoreError
from .host import Host, HostError

SOON = 3.0
"""Seconds that further hosts get to answer at the start; they may come later too."""
LONGEST_PAUSE = 30.0
"""Seconds between two questions to a host that is gone."""


@dataclass(frozen=True)
class Seen:
    """A host's answer: how many jobs it has, or why there is none."""

    url: str
    jobs: int = 0
    error: str = ""


def ask(host: Host) -> Seen:
    try:
        return Seen(host.url, host.greet())
    except HostError as error:
        host.follows_jobs = None  # it may come back as another version
        return Seen(host.url, error=str(error))


def contact(hosts: Sequence[Host]) -> list[Seen]:
    """The answers of all hosts, or once one is there those that come soon. Raises RestoreError where none is."""
    answers: queue.SimpleQueue[Seen] = queue.SimpleQueue()
    for host in hosts:
        threading.Thread(target=lambda host=host: answers.put(ask(host)), daemon=True).start()
    seen: list[Seen] = []
    deadline: float | None = None
    while len(seen) < len(hosts):
        try:
            seen.append(answers.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic())))
        except queue.Empty:
            break
        if not seen[-1].error and deadline is None:
            deadline = time.monotonic() + SOON
    if any(not each.error for each in seen):
        return seen
    where = ", ".join(host.url for host in hosts)
    raise RestoreError(f"no ComfyUI answers at {where} ({seen[-1].error}). Start it, or pass --server.")


class Watch:
    """Asks every host now and then, and takes jobs back that could not be taken back while it was silent.

    tell: gets each answer. forget: is told of each job that is off its host.
    """

    def __init__(
        self,
        hosts: Mapping[str, Host],
        pause: float,
        tell: Callable[[Seen], None],
        forget: Callable[[str], None],
    ):
        self._hosts = hosts
        self._pause = pause
        self._tell = tell
        self._forget = forget
        self._over = threading.Event()
        self._orphans: dict[str, list[str]] = defaultdict(list)
        self._again = {url: threading.Event() for url in hosts}

    def start(self) -> None:
        for host in self._hosts.values():
            threading.Thread(target=self._ask, args=(host,), daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        for again in self._again.values():
            again.set()

    def look_now(self, url: str) -> None:
        """Something is wrong with a host: do not wait."""
        self._again[url].set()

    def take_back(self, url: str, prompt: str) -> None:
        """Cancel a job, now or when its host answers again."""
        try:
            self._hosts[url].cancel(prompt)
        except HostError:
            self._orphans[url].append(prompt)
        else:
            self._forget(prompt)

    def _ask(self, host: Host) -> None:
        pause = self._pause
        while not self._over.is_set():
            self._again[host.url].clear()
            seen = ask(host)
            if not seen.error:
                waiting = self._orphans.pop(host.url, [])
                for prompt in waiting:
                    self.take_back(host.url, prompt)
            self._tell(seen)
            pause = min(LONGEST_PAUSE, pause * 2) if seen.error else self._pause
            begun = time.monotonic()
            if self._again[host.url].wait(pause) and not self._over.is_set():
                self._over.wait(min(1.0, max(0.0, self._pause - (time.monotonic() - begun))))
