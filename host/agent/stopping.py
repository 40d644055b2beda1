"""Ending a loop early: after the round that runs, with the candidates made so far."""

from __future__ import annotations

import threading
from collections import Counter

from .timeline import Place


class Stopping:
    """Which loops were asked to end. It knows about one prompt at a time, as the host runs one at a time.

    The one thing that a button press and a run share: the press comes in on the server's thread, from outside of any
    node.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._prompt = ""
        self._asked: set[str] = set()
        self._begun: set[tuple[str, int]] = set()
        self._ended: set[str] = set()
        self._stops: Counter[str] = Counter()

    def ask(self, prompt_id: str, node: str) -> None:
        """End the loop that is shown on this node, in this prompt only."""
        with self._lock:
            self._enter(prompt_id)
            self._asked.add(node)

    def goes_on(self, place: Place | None, run: str, number: int) -> bool:
        """Whether round `number` of a run begins. A round that has begun once is made to its end.

        place: where the loop is; None outside of a server, where nothing can be stopped.
        """
        if place is None:
            return True
        with self._lock:
            self._enter(place.prompt_id)
            if (run, number) in self._begun:
                return True
            if run in self._ended:
                return False
            if place.node not in self._asked:
                self._begun.add((run, number))
                return True
            # Used up: a loop inside of another one's rounds begins anew in the next.
            self._asked.discard(place.node)
            self._ended.add(run)
            self._stops[place.loop] += 1
            return False

    def stops(self, loop: str) -> int:
        """How often the loop with this id was ended early: what it made then is no result to find again."""
        with self._lock:
            return self._stops[loop]

    def _enter(self, prompt_id: str) -> None:
        if prompt_id != self._prompt:
            self._prompt = prompt_id
            self._asked.clear()
            self._begun.clear()
            self._ended.clear()


STOPPING = Stopping()
