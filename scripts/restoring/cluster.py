"""Many machines through Ray: actors with a ComfyUI each, which the run takes for its hosts.

Why actors and not a Ray Data pipeline: docs/scale.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import RestoreError
from .attempt import Answer, Perform, Recipe, Restored, Sent, Spoilt, Task, read
from .host import AttemptError, HostError
from .member import Member
from .pictures import PictureError
from .target import RemoteTarget, Target

INSTALL = "--engine ray needs Ray, here and on every machine of the cluster: pip install ray"
SLICE = 0.5
"""Seconds between two looks whether waiting is of use still."""
ATTACHED_CPUS = 0.1
"""What an actor takes that only talks to a ComfyUI."""
CALLS_BESIDES = 4
"""Calls that an actor answers while it restores photos."""


@dataclass(frozen=True)
class Wishes:
    """The actors that are asked for.

    servers: addresses of ComfyUIs that run, an actor for each. comfyui: without servers, what each actor starts.
    hosts: most actors then; None for what the cluster holds now. jobs: photos at a time on each. silence: seconds
    after which one counts as gone.
    """

    servers: Sequence[str] = ()
    comfyui: str = ""
    hosts: int | None = None
    gpus: float = 1.0
    cpus: float = 1.0
    jobs: int = 2
    silence: float = 60.0


class Slot:
    """A place for an actor, by the name of a host: another actor comes into it when one dies.

    attached: whether its ComfyUI, and the jobs there, outlive an actor.
    """

    def __init__(self, url: str, ray: Any, make: Any, silence: float, attached: bool):
        self.url = url
        self.attached = attached
        self.wanted = True
        self.busy: set[str] = set()
        """Jobs that the actor works on, or holds the results of."""
        self.actor: Any = None
        self.follows_jobs: bool | None = None
        self._ray = ray
        self._make = make
        self._silence = silence
        self._waiting: Any = None
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def begin(self, prompt: str) -> Any:
        """Keep the actor until `end`. Returns None where there is none."""
        with self._lock:
            self.busy.add(prompt)
            return self.actor

    def end(self, prompt: str) -> None:
        self.busy.discard(prompt)

    def greet(self) -> int:
        """How many jobs its ComfyUI has. Makes the actor where there is none. Raises HostError."""
        with self._lock:
            if self._closed.is_set() or not (self.wanted or self.busy):
                self.drop(self.actor)
                raise HostError(f"{self.url} is not needed now", reached=False)
        if (actor := self.actor) is None:
            actor, self._waiting = self._make(), None
            self.actor = actor
        self._waiting = self._waiting or actor.greet.remote()
        if not self._came(self._waiting):
            raise HostError(f"{self.url} waits for a place in the cluster, or does not answer", reached=False)
        reference, self._waiting = self._waiting, None
        jobs, error = self.get(reference, actor)
        if error:
            raise HostError(error, reached=False)
        return int(jobs)

    def _came(self, reference: Any) -> bool:
        deadline = time.monotonic() + self._silence
        while time.monotonic() < deadline and not self._closed.is_set():
            if self._ray.wait([reference], timeout=SLICE)[0]:
                return True
        return False

    def get(self, reference: Any, actor: Any) -> Any:
        """An answer of an actor. Raises HostError where it has died, and makes room for another."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            if not isinstance(error, self._ray.exceptions.RayTaskError):
                self.drop(actor)
            reason = " ".join(str(error).split())[-300:]
            raise HostError(
                f"{self.url} is gone ({type(error).__name__}: {reason})", sent=True, reached=False
            ) from error

    def cancel(self, prompt_id: str) -> None:
        """Take a job out of its queue, or stop it. Raises HostError."""
        if (actor := self.actor) is None:
            if self.attached:
                raise HostError(f"{self.url} has no actor now", reached=False)
            return  # a ComfyUI of its own has ended with the actor, and so have its jobs
        reference = actor.cancel.remote(prompt_id)
        if not self._came(reference):
            raise HostError(f"{self.url} does not answer", reached=False)
        if error := self.get(reference, actor):
            raise HostError(error, reached=False)

    def drop(self, actor: Any) -> None:
        """End an actor, and its own ComfyUI with it; by now another one may be in its place."""
        if self.actor is actor:
            self.actor = None
        if actor is not None:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)

    def close(self) -> None:
        self._closed.set()
        self.drop(self.actor)


@dataclass
class Held:
    """Results that wait in an actor, which writes them to storage itself."""

    slot: Slot
    actor: Any
    prompt: str
    sizes: Sequence[int]
    put_already: bool = False

    def put(self, target: Target, names: Sequence[str]) -> None:
        error = self.slot.get(self.actor.put.remote(self.prompt, list(names)), self.actor)
        if error is not None:
            raise error
        self.put_already = True
        if isinstance(target, RemoteTarget):
            for name, size in zip(names, self.sizes, strict=True):
                target.written(name, size)

    def discard(self) -> None:
        self.slot.end(self.prompt)
        if not self.put_already:
            with contextlib.suppress(Exception):  # of an actor that has died there is nothing to discard
                self.actor.discard.remote(self.prompt)


@dataclass
class Cluster:
    """The slots by their names, and what a run needs to know of them."""

    ray: Any
    hosts: Mapping[str, Slot]
    wishes: Wishes
    stored: bool
    """Whether actors write results to storage themselves."""

    @property
    def perform(self) -> Perform:
        return self._perform

    def _perform(self, task: Task, slot: Slot, called_off: threading.Event, sent: Sent) -> Answer:
        answer: Answer
        actor = slot.begin(task.prompt)
        try:
            answer = self._attempt(task, slot, actor, called_off, sent)
        except PictureError as error:
            answer = Spoilt(str(error))
        except (AttemptError, RestoreError) as error:
            answer = error
        except Exception as error:  # one photo must not end the others
            answer = Spoilt(f"unexpectedly {error!r}"[:1000])
        if not (isinstance(answer, Restored) and answer.held):
            slot.end(task.prompt)
        return answer

    def _attempt(self, task: Task, slot: Slot, actor: Any, called_off: threading.Event, sent: Sent) -> Answer:
        if actor is None:
            return HostError(f"{slot.url} is not there", reached=False)
        if isinstance(task.photo.path, Path):
            task = dataclasses.replace(task, content=read(task))
        sent(task.prompt)
        reference = actor.attempt.remote(task)
        told = False
        while not self.ray.wait([reference], timeout=SLICE)[0]:
            if called_off.is_set() and not told:
                told = True
                actor.call_off.remote(task.prompt)
        answer, sizes = slot.get(reference, actor)
        if isinstance(answer, Restored) and self.stored:
            answer.held = Held(slot, actor, task.prompt, sizes)
        return answer

    def demand(self, photos: int) -> None:
        """So many photos are left: how many actors that start their own ComfyUI are worth their place.

        One more than can be busy stays, for photos that are late. Those that wait for a place are what makes the
        cluster grow.
        """
        if self.wishes.servers:
            return
        most = math.ceil(photos / self.wishes.jobs) + 1
        slots = sorted(self.hosts.values(), key=lambda slot: (not slot.busy, slot.actor is None))
        for index, slot in enumerate(slots):
            slot.wanted = index < most


def resources(wishes: Wishes) -> dict[str, float]:
    """What an actor takes of its machine."""
    return {"num_cpus": ATTACHED_CPUS} if wishes.servers else {"num_cpus": wishes.cpus, "num_gpus": wishes.gpus}


def most_hosts(ray: Any, wishes: Wishes) -> int:
    """How many actors with a ComfyUI of their own the cluster holds now."""
    total = ray.cluster_resources()
    rooms = [total.get("GPU", 0) / wishes.gpus] if wishes.gpus else []
    rooms += [total.get("CPU", 0) / wishes.cpus] if wishes.cpus else []
    return max(1, int(min(rooms, default=1)))


@contextlib.contextmanager
def cluster(address: str | None, wishes: Wishes, recipe: Recipe, target: Target) -> Iterator[Cluster]:
    """A Ray cluster with the actors, which end with it. Raises RestoreError where Ray or the cluster is not there."""
    if not (wishes.servers or wishes.comfyui):
        raise RestoreError("--engine ray needs --server ADDRESS..., or --comfyui FOLDER to start some")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise RestoreError(INSTALL) from error
    scripts = {"working_dir": str(Path(__file__).resolve().parent.parent), "excludes": ["**/__pycache__"]}
    try:
        ray.init(address=address, runtime_env=scripts, log_to_driver=False, logging_level="warning")
    except Exception as error:  # Ray raises RuntimeError, ValueError, ConnectionError and others
        raise RestoreError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    slots: dict[str, Slot] = {}
    try:
        stored = isinstance(target, RemoteTarget)
        options = {"max_concurrency": wishes.jobs + CALLS_BESIDES, "scheduling_strategy": "SPREAD"}
        remote = ray.remote(Member).options(**resources(wishes), **options)

        def slot(name: str, url: str) -> Slot:
            given = (recipe, url, wishes.comfyui, not wishes.gpus, wishes.silence, str(target) if stored else "")
            return Slot(name, ray, lambda: remote.remote(*given), wishes.silence, attached=bool(url))

        count = wishes.hosts or (0 if wishes.servers else most_hosts(ray, wishes))
        names = {url: url for url in wishes.servers} or {f"ray:{number}": "" for number in range(count)}
        slots |= {name: slot(name, url) for name, url in names.items()}
        yield Cluster(ray, slots, wishes, stored)
    finally:
        for each in slots.values():
            each.close()
        ray.shutdown()
