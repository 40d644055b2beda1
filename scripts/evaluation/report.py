"""What an evaluation found: a Markdown table and JSON, with everything that the figures depend on."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from realisr.services.iqa.metrics import MetricInfo
from realisr.services.iqa.weights import WEIGHT_URLS, file_hash, find_file

from .protocols import Protocol
from .published import PublishedTable
from .store import Scores

PACKAGES = ("torch", "torchvision", "pyiqa", "numpy", "pillow")
DIGITS = 4


@dataclass
class Report:
    """Everything a reader needs to judge the figures."""

    protocol: Protocol
    metrics: Mapping[str, MetricInfo]
    """Those that were computed, in the order of the columns."""
    scores: Mapping[str, Scores]
    """By method; columns are those of `metrics` without FID."""
    asked: Sequence[str] = ()
    """All that were asked for; those that are missing are in `gaps`."""
    fid: Mapping[str, float] = field(default_factory=dict)
    """By method, where it was computed."""
    gaps: dict[str, str] = field(default_factory=dict)
    """What is missing from the report, and why."""
    versions: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    """File -> SHA-256."""
    published: Sequence[PublishedTable] = ()

    @property
    def columns(self) -> list[str]:
        """Metrics with a score for each image."""
        return [name for name in self.metrics if name != "fid"]

    def means(self, method: str) -> dict[str, float]:
        """The mean of each metric over the images it judged, and FID; NaN where there is nothing."""
        values = self.scores[method].values
        found = {name: mean(values[:, index]) for index, name in enumerate(self.columns)}
        return {name: self.fid.get(method, math.nan) if name == "fid" else found[name] for name in self.metrics}

    def judged(self, method: str) -> dict[str, int]:
        """metric -> how many images it judged."""
        return dict(zip(self.columns, np.isfinite(self.scores[method].values).sum(axis=0).tolist(), strict=True))


def mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return math.fsum(known) / len(known) if len(known) else math.nan


def versions() -> dict[str, str]:
    """Of Python and the packages that scores depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def weight_hashes(metrics: Iterable[str], folder: Path) -> dict[str, str]:
    """SHA-256 of the known weight files of metrics, by file name."""
    urls = dict.fromkeys(url for name in metrics for url in WEIGHT_URLS.get(name, ()))
    return {path.name: file_hash(path) for url in urls if (path := find_file(url, folder)) is not None}


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    return "\n\n".join(["# Evaluation", table(report), *comparisons(report), *remarks(report)]) + "\n"


def table(report: Report) -> str:
    """Methods down, metrics across; the best of several in bold."""
    means = {method: report.means(method) for method in report.scores}
    absent = [name for name in report.gaps if name in report.asked]
    header = ["method", "images", *(f"{name} {arrow(metric)}" for name, metric in report.metrics.items()), *absent]
    lines = [header]
    for method, found in means.items():
        best = [name for name in found if len(means) > 1 and found[name] == best_of(report, means, name)]
        cells = [f"**{shown(value)}**" if name in best else shown(value) for name, value in found.items()]
        lines.append([method, str(len(report.scores[method].names)), *cells, *("missing" for _ in absent)])
    return grid(lines)


def best_of(report: Report, means: Mapping[str, Mapping[str, float]], name: str) -> float:
    known = [found[name] for found in means.values() if math.isfinite(found[name])]
    if not known:
        return math.nan
    return min(known) if report.metrics[name].lower_is_better else max(known)


def comparisons(report: Report) -> Iterator[str]:
    """Ours beside each published table."""
    for published in report.published:
        named = dict.fromkeys(metric for _, values in published.rows for metric in values)
        means = {method: report.means(method) for method in report.scores}
        lines = [["method", *named]]
        lines += [
            [f"{method} (ours)", *(shown(found.get(metric, math.nan)) for metric in named)]
            for method, found in means.items()
        ]
        lines += [
            [f"{method} (published)", *(shown(values.get(metric, math.nan)) for metric in named)]
            for method, values in published.rows
        ]
        parts = [
            f"## Beside {published.title}",
            grid(lines),
            f"Source: {published.source}. Images: {published.test_set}.",
        ]
        parts += [f"Not here: {published.incomplete}."] if published.incomplete else []
        if published.protocol != report.protocol.name:
            made = f"with the protocol {published.protocol}" if published.protocol else "with a protocol not known here"
            parts.append(f"**Not comparable as it stands**: it was made {made}, ours with {report.protocol.name}.")
        yield "\n\n".join(parts)


def remarks(report: Report) -> Iterator[str]:
    """What is missing, how it was computed, and with what."""
    notes = [f"- {name}: {reason}" for name, reason in report.gaps.items()]
    for method, scores in report.scores.items():
        notes += [
            f"- {method}: {name} judged {count} of {len(scores.names)} images"
            for name, count in report.judged(method).items()
            if count < len(scores.names)
        ]
        notes += [f"- {method}: {note}" for note in scores.notes]
    if notes:
        yield "\n".join(["## Missing", "", *notes])
    protocol = report.protocol
    lines = [
        f"- Protocol: {protocol.name}. {protocol.source}",
        f"- PSNR and SSIM: on {'luma (BT.601, studio range)' if protocol.channel == 'y' else 'RGB'}, border of "
        f"{protocol.crop_border} pixels left out, float64",
        f"- Images: {f'centre of {protocol.center_crop} pixels' if protocol.center_crop else 'whole'}",
    ]
    lines += [f"- Chosen here: {protocol.assumed}"] if protocol.assumed else []
    if "fid" in report.metrics:
        how = f"patches of {protocol.fid_patch} pixels" if protocol.fid_patch else "whole images"
        lines.append(f"- FID: {how}, clean-fid's resizing. Below some thousand images it says little")
    lines += [f"- {name} {number}" for name, number in report.versions.items()]
    lines += [f"- {name}: SHA-256 {digest}" for name, digest in report.weights.items()]
    yield "\n".join(["## How", "", *lines])


def arrow(metric: MetricInfo) -> str:
    return "↓" if metric.lower_is_better else "↑"


def shown(value: float) -> str:
    return f"{value:.{DIGITS}f}" if math.isfinite(value) else "-"


def grid(lines: Sequence[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(each.replace("|", "\\|") for each in line) + " |" for line in lines]
    return "\n".join([rows[0], "| --- " * len(lines[0]) + "|", *rows[1:]])


# --- JSON ------------------------------------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, Any]:
    """Plain JSON: means, the scores of every image, gaps, protocol and versions. What is no number is null."""
    return {
        "protocol": dict(vars(report.protocol)),
        "metrics": {name: {"lower_is_better": metric.lower_is_better} for name, metric in report.metrics.items()},
        "gaps": report.gaps,
        "versions": dict(report.versions),
        "weights": dict(report.weights),
        "methods": {method: method_json(report, method) for method in report.scores},
    }


def method_json(report: Report, method: str) -> dict[str, Any]:
    scores = report.scores[method]
    return {
        "count": len(scores.names),
        "mean": {name: number(value) for name, value in report.means(method).items()},
        "judged": report.judged(method),
        "images": {
            name: dict(zip(report.columns, map(number, row.tolist()), strict=True))
            for name, row in zip(scores.names, scores.values, strict=True)
        },
    }


def number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write(report: Report, folder: Path) -> None:
    """table.md and scores.json."""
    (folder / "table.md").write_text(markdown(report), encoding="utf-8")
    content = json.dumps(as_json(report), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "scores.json").write_text(content + "\n", encoding="utf-8")
