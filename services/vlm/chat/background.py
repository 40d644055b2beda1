"""Asynchronous work in a thread of its own, for a caller that waits and may give up at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Generic, TypeVar

from ..protocol import Poll

T = TypeVar("T")
INTERVAL = 0.05
STOP_TIMEOUT = 1.0


class _Loop(threading.Thread, Generic[T]):
    """Runs `work` in an event loop. What it puts, and at the end None, can be taken from `found`."""

    def __init__(self, work: Callable[[Callable[[T], None]], Awaitable[None]]):
        super().__init__(name="realisr-requests", daemon=True)
        self.work = work
        self.found: queue.Queue[tuple[T] | None] = queue.Queue()
        self.error: BaseException | None = None
        self.running = threading.Event()

    def run(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.error = error  # raised where it is waited for
        finally:
            self.found.put(None)

    async def _main(self) -> None:
        self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
        self.running.set()
        await self.work(lambda item: self.found.put((item,)))

    def cancel(self) -> None:
        """Stop the work, closing its connections, and wait shortly for that."""
        if self.running.wait(STOP_TIMEOUT) and self.task is not None:
            # Raised for a loop that has ended in this moment.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.task.cancel)
        self.join(STOP_TIMEOUT)


def iterate(work: Callable[[Callable[[T], None]], Awaitable[None]], poll: Poll) -> Iterator[T]:
    """What asynchronous `work` hands to the function it is given, as it comes.

    poll is called several times a second in the caller's thread, whatever the work waits for. When it raises, or the
    caller stops taking, the work is cancelled. Raises what the work raises.
    """
    thread = _Loop(work)
    thread.start()
    try:
        while True:
            poll()
            try:
                found = thread.found.get(timeout=INTERVAL)
            except queue.Empty:
                continue
            if found is None:
                break
            yield found[0]
        if thread.error is not None:
            raise thread.error
    finally:
        thread.cancel()
