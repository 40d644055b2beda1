"""Micro-batches by number, read ahead by worker processes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset

from .method import Batch, Method

SKIPPED = "skipped"
"""Key of an item's list of (path, reason): what was drawn before it and could not be read."""

FORKS = sys.platform == "linux"
"""Whether worker processes start with what this one has in memory. Where they do not, this one reads the data."""


class SampleError(ValueError):
    """A sample that cannot be made of anything there is; the message says why and what to do."""


class MicroBatches(Dataset):
    """Micro-batch m holds samples m B .. m B + B - 1, whichever process takes it."""

    def __init__(self, method: Method[Any]):
        self.method, self.samples, self.size = method, method.samples(), method.config.batch

    def __getitem__(self, number: int) -> Batch:
        items = [dict(self.samples[number * self.size + index]) for index in range(self.size)]
        skipped = [entry for item in items for entry in item.pop(SKIPPED, ())]
        return {**self.method.collate(items), SKIPPED: skipped}


def micro_batches(
    batches: MicroBatches, first_step: int, steps: int, accumulate: int, rank: int, processes: int, workers: int
) -> Iterator[list[tuple[int, Batch]]]:
    """For each step its (number, micro-batch) pairs of one process.

    Number (step * accumulate + a) * processes + rank: two processes together take what one with twice the accumulation
    takes.
    """
    numbers = [
        (step * accumulate + part) * processes + rank for step in range(first_step, steps) for part in range(accumulate)
    ]
    loader = DataLoader(
        Reported(batches),
        batch_size=None,
        sampler=numbers,
        num_workers=workers if FORKS else 0,
        # Python 3.14 has another default, which would send the method to each worker, networks and all.
        multiprocessing_context="fork" if FORKS and workers else None,
        collate_fn=unchanged,
        worker_init_fn=leave_interrupts,
    )
    source = zip(numbers, whole_batches(loader), strict=True)
    for _ in range(first_step, steps):
        yield [next(source) for _ in range(accumulate)]


class Reported(Dataset):
    """Micro-batches, or the SampleError in place of one: a worker's exception would bring its traceback as text."""

    def __init__(self, batches: MicroBatches):
        self.batches = batches

    def __getitem__(self, number: int) -> Batch | SampleError:
        try:
            return self.batches[number]
        except SampleError as error:
            return error


def whole_batches(loader: Iterable[Batch | SampleError]) -> Iterator[Batch]:
    for batch in loader:
        if isinstance(batch, SampleError):
            raise batch
        yield batch


def unchanged(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    return batch


def leave_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process alone decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
