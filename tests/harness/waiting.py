"""Waiting for something to happen, without a word about how fast: the limit only ends what hangs."""

from __future__ import annotations

import time
from collections.abc import Callable

HANG = 120.0
"""Seconds after which a test no longer waits."""


def wait_until(happened: Callable[[], object], seconds: float = HANG) -> None:
    """Raises AssertionError when it has not happened within `seconds`."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"this did not happen within {seconds:g} seconds"
        time.sleep(0.01)
