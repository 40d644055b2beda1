"""Metrics that compare an image with its reference: PSNR and SSIM, which need nothing, and those of pyiqa.

PSNR and SSIM are ours (models/fidelity.py), so that they work without pyiqa and without a file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from .metrics import MetricInfo, catalogue, entry, refuse_repetition, split_names

OWN_METRICS: Mapping[str, MetricInfo] = {
    "psnr": MetricInfo("psnr", "", False, "~0, 80", True),
    "ssim": MetricInfo("ssim", "", False, "0, 1", True),
}
COMMON = ("psnr", "ssim", "lpips", "lpips-vgg", "dists", "topiq_fr")
FID = "fid"


def find_metric(name: str) -> MetricInfo:
    """Any metric by name, with a reference or without: one of our own, else pyiqa's; case does not matter.

    Raises ValueError for a name that neither has; ImportError when it may be pyiqa's, which is not installed.
    """
    if own := OWN_METRICS.get(name.lower()):
        return own
    table = catalogue()
    match = next((key for key in table if key.lower() == name.lower()), None)
    if match is None:
        close = difflib.get_close_matches(name.lower(), [*table, *OWN_METRICS], n=5, cutoff=0.5)
        raise ValueError(f"There is no metric named '{name}'. Did you mean {', '.join(close) or ', '.join(COMMON)}?")
    return entry(match, table[match])


def parse_reference_metrics(text: str) -> tuple[MetricInfo, ...]:
    """Metrics with a reference that a text names, in its order; case does not matter.

    Raises ValueError for an empty list, a name twice, an unknown name and a metric that takes no reference;
    ImportError when one of pyiqa's is named and pyiqa is not installed.
    """
    metrics = tuple(find_metric(name) for name in split_names(text))
    if not metrics:
        raise ValueError(f"No metric is named. There are: {', '.join(COMMON)}, ...")
    for metric in metrics:
        if not metric.needs_reference:
            raise ValueError(
                f"The metric '{metric.name}' does not compare with a reference. Here are: {', '.join(COMMON)}, ... "
                "NR-IQA Score takes those without one."
            )
    refuse_repetition(metrics)
    return metrics
