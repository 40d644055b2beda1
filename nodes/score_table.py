"""A table of quality scores: as text, and as data for the table that the browser shows on the node."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..models.best_of_n import Ranking
from ..services.iqa.metrics import MetricInfo

PROMPT_LENGTH = 60


@dataclass(frozen=True)
class Section:
    """Rows of one table."""

    title: str
    scores: Tensor
    """`[N, M]`, N images or candidates, M metrics."""
    ranking: Ranking | None = None
    """When they are candidates of one image."""
    prompts: Sequence[str] = ()
    """Of the N candidates, or empty."""
    pin: int | None = None
    """The candidate that was chosen by hand, in place of the ranking's."""
    shown: Sequence[Mapping[str, Any]] = ()
    """What the browser is told of the N candidates besides: plain JSON, or empty."""

    @property
    def chosen(self) -> int | None:
        return self.pin if self.pin is not None or self.ranking is None else self.ranking.best


@dataclass(frozen=True)
class ScoreTable:
    metrics: Sequence[MetricInfo]
    sections: Sequence[Section]

    def ui(self) -> dict[str, Any]:
        """What the history holds and the browser draws: plain JSON, a score that is no number as null."""
        metrics = [{"name": metric.name, "lower_is_better": metric.lower_is_better} for metric in self.metrics]
        return {"score_table": [{"metrics": metrics, "sections": [section_data(section) for section in self.sections]}]}

    def text(self) -> str:
        """Aligned columns, one line per image or candidate; `*` marks the chosen one, `#` ranks in a metric."""
        return "\n\n".join(self._section_text(section) for section in self.sections)

    def _section_text(self, section: Section) -> str:
        header = ["index", *(f"{metric.name} {'↓' if metric.lower_is_better else '↑'}" for metric in self.metrics)]
        if section.ranking is not None:
            header += ["rank sum", "mean"]
        if section.prompts:
            header.append("prompt")
        rows = [header]
        for row in section_data(section)["rows"]:
            ranks = row.get("ranks", [None] * len(self.metrics))
            cells = [f"{row['index']}{' *' if row.get('chosen') else ''}"]
            cells += [cell(score, rank) for score, rank in zip(row["scores"], ranks, strict=True)]
            if section.ranking is not None:
                cells += [str(row["rank_sum"]), f"{row['mean']:.4f}"]
            if section.prompts:
                cells.append(shortened(row["prompt"]))
            rows.append(cells)
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([section.title, *lines] if section.title else lines)


def section_data(section: Section) -> dict[str, Any]:
    """A section as JSON: index from 0, scores, and for candidates their ranks, rank sum, mean and whether chosen.

    best: the one that the scores choose; chosen: the one that is handed on, which is another where one is pinned.
    """
    rows: list[dict[str, Any]] = []
    for index, scores in enumerate(section.scores):
        numbers = [value if math.isfinite(value) else None for value in scores.tolist()]
        row: dict[str, Any] = {"index": index, "scores": numbers}
        if section.ranking is not None:
            row |= {
                "ranks": section.ranking.ranks[index].tolist(),
                "rank_sum": int(section.ranking.rank_sum[index]),
                "mean": float(section.ranking.mean_normalized[index]),
                "best": index == section.ranking.best,
                "chosen": index == section.chosen,
            }
        if section.prompts:
            row["prompt"] = section.prompts[index]
        if section.shown:
            row |= section.shown[index]
        rows.append(row)
    return {"title": section.title, "rows": rows}


def cell(score: float | None, rank: int | None) -> str:
    shown = "-" if score is None else f"{score:.4f}"
    return shown if rank is None else f"{shown} #{rank}"


def shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= PROMPT_LENGTH else line[: PROMPT_LENGTH - 1] + "…"
