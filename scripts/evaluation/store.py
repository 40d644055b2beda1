"""Rows of scores on disk as they are computed: an interrupted evaluation goes on where it was."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .judge import Row
from .pairs import EvaluateError, Pair

ROWS, SETTINGS = "per_image.csv", "settings.json"
BEFORE, AFTER = ("method", "name"), ("note", "stamp")
"""Columns around those of the metrics."""


@dataclass(frozen=True)
class Scores:
    """Scores of one method over a set of images."""

    names: tuple[str, ...]
    values: np.ndarray
    """`[images, metrics]` in float64; NaN where a metric refuses an image."""
    notes: tuple[str, ...]
    """Why metrics refused, without repetition."""


class Rows:
    """per_image.csv, a row for every method and image, appended and written through one by one.

    Raises EvaluateError where the folder holds rows of other settings.
    """

    def __init__(self, folder: Path, metrics: Sequence[str], settings: Mapping[str, Any], restart: bool = False):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / ROWS
        self.metrics = tuple(metrics)
        self._header = [*BEFORE, *self.metrics, *AFTER]
        self._finished: dict[tuple[str, str], str] = {}
        kept, described = folder / SETTINGS, json.loads(json.dumps(settings))
        if restart:
            self.path.unlink(missing_ok=True)
        if self.path.is_file():
            check_settings(kept, described, folder)
            cut_unfinished_line(self.path)
            self._finished = {(row["method"], row["name"]): row["stamp"] for row in self._read()}
        kept.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        empty = not self.path.is_file() or self.path.stat().st_size == 0
        self._file = self.path.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        if empty:
            self._writer.writerow(self._header)
            self._file.flush()

    def finished(self, method: str, pair: Pair) -> bool:
        """Whether there is a row of these files, unchanged since."""
        return self._finished.get((method, pair.name)) == pair.stamp

    def append(self, row: Row) -> None:
        scores = [row.scores[name] for name in self.metrics]
        cells = ["" if math.isnan(score) else repr(score) for score in scores]
        self._writer.writerow([row.method, row.pair.name, *cells, row.note, row.pair.stamp])
        self._file.flush()
        self._finished[row.method, row.pair.name] = row.pair.stamp

    def close(self) -> None:
        self._file.close()

    def of(self, method: str, names: Sequence[str]) -> Scores:
        """The last row of each name. Raises KeyError for one that is not there."""
        position = {name: index for index, name in enumerate(names)}
        values = np.full((len(names), len(self.metrics)), math.nan)
        seen = np.zeros(len(names), bool)
        notes: dict[str, None] = {}
        for row in self._read():
            index = position.get(row["name"]) if row["method"] == method else None
            if index is None:
                continue
            seen[index] = True
            values[index] = [float(row[name]) if row[name] else math.nan for name in self.metrics]
            if row["note"]:
                notes[row["note"]] = None
        if not seen.all():
            raise KeyError(f"{self.path} has no row of {method}/{names[int(np.argmin(seen))]}")
        return Scores(tuple(names), values, tuple(notes))

    def _read(self) -> Any:
        with self.path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def check_settings(kept: Path, settings: Mapping[str, Any], folder: Path) -> None:
    """Raises EvaluateError where rows were computed with other settings, naming which."""
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    if different := sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key)):
        raise EvaluateError(
            f"{folder} holds rows that were computed with other settings ({', '.join(different)}), which would mix. "
            "Choose another --out, or --restart to compute them anew."
        )


def cut_unfinished_line(path: Path) -> None:
    """Cut off what a write that was interrupted has left after the last whole line."""
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
