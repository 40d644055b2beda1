"""What a person sees of a run: a line for each photo, or in a terminal with tqdm a bar and a line for each host."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any

from . import printable
from .scheduler import HostState

MANY = 20
"""So many lines that say the same become one."""
HOST_LINES = 12


class Lines:
    """A line for each photo: results to standard output, failures to standard error."""

    def total(self, photos: int) -> None:
        """So many photos there are, of which more may come."""

    def note(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)

    def there(self, lines: list[str]) -> None:
        """Photos that need nothing."""
        for line in lines if len(lines) <= MANY else [f"{len(lines)} photos have results already"]:
            print(printable(line), flush=True)

    def done(self, line: str) -> None:
        print(printable(line), flush=True)

    def failed(self, line: str) -> None:
        self.note(line)

    def hosts(self, hosts: Iterable[HostState]) -> None:
        """How the hosts are."""

    def close(self) -> None:
        pass


class Bar(Lines):
    """tqdm's bar with rate and time left, and below it what each host does."""

    def __init__(self, tqdm: Any, hosts: int):
        self._bar = tqdm(total=0, unit="photo", dynamic_ncols=True, smoothing=0.1)
        self._lines = [
            tqdm(bar_format="{desc}", position=index + 1, leave=False, dynamic_ncols=True)
            for index in range(min(hosts, HOST_LINES))
        ]
        self._write = tqdm.write

    def total(self, photos: int) -> None:
        self._bar.total = photos
        self._bar.refresh()

    def note(self, text: str) -> None:
        self._write(printable(text), file=sys.stderr)

    def there(self, lines: list[str]) -> None:
        # As a start, so that the rate is that of the work.
        self._bar.initial += len(lines)
        self._bar.n += len(lines)
        self._bar.refresh()

    def done(self, line: str) -> None:
        self._bar.update(1)

    def failed(self, line: str) -> None:
        self._bar.update(1)
        self.note(line)

    def hosts(self, hosts: Iterable[HostState]) -> None:
        for line, host in zip(self._lines, hosts, strict=False):
            state = f"{len(host.running)} running" if host.up else "no answer"
            others = f", {host.others} of others" if host.others else ""
            rate = f", {host.seconds:.1f} s each" if host.finished else ""
            line.set_description_str(f"  {host.url}: {state}{others}, {host.finished} done{rate}")

    def close(self) -> None:
        for line in reversed(self._lines):
            line.close()
        self._bar.close()


def progress_for(hosts: int) -> Lines:
    """A bar in a terminal where tqdm is there, else lines."""
    if not sys.stderr.isatty():
        return Lines()
    try:
        return Bar(importlib.import_module("tqdm").tqdm, hosts)
    except ImportError:
        return Lines()
