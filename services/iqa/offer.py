"""The metrics to choose from: which work on this machine, and what the others lack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .metrics import DEFAULT_METRICS, MetricInfo, catalogue, entry, missing_modules
from .reference import COMMON, FID, OWN_METRICS
from .weights import WEIGHT_URLS, WITHOUT_FILES, find_file


@dataclass(frozen=True)
class Offer:
    """A metric and whether it can be used here."""

    metric: MetricInfo
    files: Mapping[str, bool]
    """Address of each file it needs -> whether the file is there."""
    runs: bool
    """Its Python packages are there."""
    common: bool
    """Of the paper, or well known: offered first."""

    @property
    def ready(self) -> bool:
        return self.runs and all(self.files.values())


def offered(folder: Path) -> list[Offer]:
    """The metrics whose files are known, those of one image and those with a reference, as they stand in `folder`.

    Every one by its name alone where pyiqa is not installed.
    """
    absent = missing_modules()
    table = {} if "pyiqa" in absent else catalogue()
    offers = []
    for name in dict.fromkeys((*DEFAULT_METRICS, *WITHOUT_FILES, *COMMON, *WEIGHT_URLS)):
        own = OWN_METRICS.get(name)
        metric = own or (entry(name, table[name]) if name in table else MetricInfo(name, "", False, "", name in COMMON))
        files = {url: find_file(url, folder) is not None for url in WEIGHT_URLS.get(name, ())}
        if name != FID:
            offers.append(Offer(metric, files, own is not None or not absent, name in (*DEFAULT_METRICS, *COMMON)))
    return offers


def first_choice(offers: Sequence[Offer]) -> list[str]:
    """No-reference metrics that a new node begins with: those of the paper that are ready, else one without files."""
    ready = [offer.metric.name for offer in offers if offer.ready]
    return [name for name in DEFAULT_METRICS if name in ready] or list(WITHOUT_FILES[:1])
