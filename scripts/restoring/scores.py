"""Scores of results for the report, by the metrics of scripts/evaluate.py. Needs torch, and pyiqa for most."""

from __future__ import annotations

import math
import tempfile
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from . import RestoreError
from .target import Target


class Scores:
    """The metrics of a comma-separated list, loaded.

    reference: folder of originals, each named as its result below the target but for the suffix. weights: folder of
    the metrics' files. A metric that cannot be computed here is a gap with its reason. Raises RestoreError for a name
    that is no metric, and where torch is missing.
    """

    def __init__(self, names: str, reference: Path | None = None, weights: Path | None = None):
        try:
            from _pack import load_pack

            load_pack()
            import torch

            from evaluation.judge import Judge, Settings
            from evaluation.pairs import EvaluateError
            from evaluation.protocols import PROTOCOLS
            from evaluation.weights import default_weights
            from realisr.services.iqa.metrics import split_names
        except ImportError as error:
            raise RestoreError(f"--scores needs {error.name}: run this with ComfyUI's Python") from error
        metrics = tuple(dict.fromkeys(split_names(names.lower())))
        if "fid" in metrics:
            raise RestoreError("--scores: fid is of a whole folder; scripts/evaluate.py computes it")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        folder = weights or default_weights()
        try:
            settings = Settings(PROTOCOLS["osediff"], metrics, folder, device, folder, reference is not None)
            self._judge = Judge(settings)
        except EvaluateError as error:
            raise RestoreError(f"--scores: {error}") from error
        self._reference = reference

    def add(self, rows: Sequence[MutableMapping[str, Any]], target: Target) -> dict[str, Any]:
        """Writes `scores` into the row of every photo that has results: file -> metric -> value, or a reason.

        Returns for the whole report: the metrics, and metric -> why it could not be computed.
        """
        for row in rows:
            if row.get("results") and self._judge.metrics:
                row["scores"] = {name: self._of(name, target) for name in row["results"]}
        return {"metrics": list(self._judge.metrics), "gaps": dict(self._judge.gaps)}

    def _of(self, name: str, target: Target) -> dict[str, Any]:
        from evaluation.pairs import EvaluateError, Pair, check_files

        with tempfile.TemporaryDirectory() as scratch:
            result = Path(scratch) / Path(name).name
            try:
                result.write_bytes(target.read(name))
                pair = Pair(name, result, self._original(name))
                check_files([pair], 0, self._judge.settings.smallest)
                row = self._judge.row("restored", pair)
            except OSError as error:
                return {"error": f"cannot be read: {error.strerror or error}"}
            except EvaluateError as error:
                return {"error": " ".join(str(error).split()).replace(f"{scratch}/", "")}
        if row.error:
            return {"error": row.error}
        values = {metric: None if math.isnan(value) else value for metric, value in row.scores.items()}
        return {**values, "note": row.note} if row.note else values

    def _original(self, name: str) -> Path | None:
        """Raises EvaluateError where there is none."""
        if self._reference is None:
            return None
        from evaluation.pairs import SUFFIXES, EvaluateError

        place = self._reference / name
        for suffix in sorted(SUFFIXES):
            if (found := place.with_suffix(suffix)).is_file():
                return found
        raise EvaluateError(f"{place.with_suffix('')} has no original among {', '.join(sorted(SUFFIXES))}")
