"""One pair after another through the judge, in this process or in several; images come and go one at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from .fid import Gaussian, frechet_distance
from .judge import Judge, Row, Settings, features_file
from .pairs import EvaluateError, Pair, listed
from .store import Rows

Item = TypeVar("Item")
Result = TypeVar("Result")
WAITING_PER_JOB = 2


def score_pairs(judge: Judge, methods: Mapping[str, Sequence[Pair]], rows: Rows, jobs: int = 1) -> None:
    """Append a row for every pair that has none. Raises EvaluateError for files that cannot be read, after the rest."""
    todo = ((method, pair) for method, pairs in methods.items() for pair in pairs if not rows.finished(method, pair))
    total = sum(len(pairs) for pairs in methods.values())
    done = sum(rows.finished(method, pair) for method, pairs in methods.items() for pair in pairs)
    errors: list[str] = []
    with tqdm(total=total, initial=done, unit="image", dynamic_ncols=True) as bar:
        for row in computed(judge, todo, jobs):
            if row.error:
                errors.append(row.error)
            else:
                rows.append(row)
            bar.update(1)
    if errors:
        raise EvaluateError(f"{len(errors)} files cannot be read; the other rows are kept:\n{listed(errors)}")


def computed(judge: Judge, todo: Iterable[tuple[str, Pair]], jobs: int) -> Iterator[Row]:
    """Rows in the order of the pairs. Each of several processes loads the metrics for itself."""
    if jobs == 1:
        for method, pair in todo:
            yield judge.row(method, pair)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    # A new interpreter each: what a fork takes along, a CUDA device among it, does not work there.
    with ProcessPoolExecutor(jobs, get_context("spawn"), prepare_process, (threads,)) as pool:
        settings = replace(judge.settings, metrics=tuple(judge.metrics))
        judge.networks.clear()
        yield from in_order(pool, row_in_process, ((settings, *item) for item in todo), WAITING_PER_JOB * jobs)


def in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], waiting: int
) -> Iterator[Result]:
    """Results in the order of the items, of which no more than `waiting` are under way."""
    under_way: deque[Future[Result]] = deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        if len(under_way) >= waiting:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def prepare_process(threads: int) -> None:
    torch.set_num_threads(threads)


@cache
def judge_of_process(settings: Settings) -> Judge:
    return Judge(settings)


def row_in_process(item: tuple[Settings, str, Pair]) -> Row:
    settings, method, pair = item
    return judge_of_process(settings).row(method, pair)


def fid_of(settings: Settings, method: str, pairs: Sequence[Pair]) -> float:
    """FID of a method's results against their references, from the features on disk. Raises ValueError for too few."""

    def kept(whose: str, files: Iterable[tuple[str, Path]]) -> Iterator[np.ndarray]:
        for name, path in files:
            yield np.load(features_file(settings.features, whose, name, path))

    results = ((pair.name, pair.result) for pair in pairs)
    references = ((pair.name, pair.reference) for pair in pairs if pair.reference is not None)
    return frechet_distance(Gaussian.of(kept(method, results)), Gaussian.of(kept("reference", references)))
