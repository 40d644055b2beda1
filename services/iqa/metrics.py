"""pyiqa's metrics: which there are, which a text names, and scoring an image with one.

pyiqa is optional and imported on use. Its list of metrics is read without importing it.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

DEFAULT_METRICS = ("liqe", "musiq", "maniqa", "clipiqa")

# As pyproject.toml has them. The dependencies that pyiqa declares (two OpenCV builds, bitsandbytes, datasets,
# tensorboard, ...) are for training and would be left unused.
LIGHT_PACKAGES = ("clip-anytorch>=2.6", "ftfy>=6.1", "timm>=1.0")
PACKAGES_WITHOUT_DEPENDENCIES = ("pyiqa>=0.1.15,<0.2",)

MODULES = ("pyiqa", "clip", "ftfy", "timm")
"""What those packages are imported as; pyiqa needs the others for any of its metrics."""

# pyiqa lists these as no-reference too.
NOT_OF_ONE_IMAGE = {
    "FID": "compares two sets of images",
    "InceptionScore": "judges a set of images, not one",
    "CLIPScore": "compares an image with a caption",
}


@dataclass(frozen=True)
class MetricInfo:
    """A metric as pyiqa lists it."""

    name: str
    architecture: str
    """Name of its network in pyiqa's registry."""
    lower_is_better: bool
    score_range: str
    """In pyiqa's own words; `~` marks a rough bound."""
    needs_reference: bool = False
    """Compares an image with a reference."""


def install_command() -> str:
    """The commands that add pyiqa to this Python and change no package that is there."""
    pip = f'"{sys.executable}" -m pip install'
    light, alone = (
        " ".join(f'"{package}"' for package in packages) for packages in (LIGHT_PACKAGES, PACKAGES_WITHOUT_DEPENDENCIES)
    )
    return f"{pip} {light}   and then   {pip} --no-deps {alone}"


def missing_modules() -> list[str]:
    """Those of MODULES that this Python does not have; nothing is imported to find out."""
    return [name for name in MODULES if importlib.util.find_spec(name) is None]


def catalogue() -> Mapping[str, Mapping[str, Any]]:
    """pyiqa's table of metrics by name. Raises ImportError with the install commands when pyiqa is not there."""
    found = importlib.util.find_spec("pyiqa")
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"The quality nodes need the Python package pyiqa. Install: {install_command()}")
    path = Path(found.submodule_search_locations[0]) / "default_model_configs.py"
    # By its path: importing it by name would import all of pyiqa, which takes seconds.
    spec = importlib.util.spec_from_file_location("pyiqa_metric_table", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DEFAULT_CONFIGS


def parse_metrics(text: str) -> tuple[MetricInfo, ...]:
    """No-reference metrics named in a text, in its order; case does not matter.

    Raises ValueError for an empty list, a name twice, a name pyiqa does not have (with close ones), and metrics that
    need more than one image; ImportError when pyiqa is not installed.
    """
    table = catalogue()
    spelling = {name.lower(): name for name in table}
    names = split_names(text)
    if not names:
        raise ValueError(f"No metric is named. The paper's are: {', '.join(DEFAULT_METRICS)}.")
    known = [spelling.get(name.lower()) for name in names]
    metrics = tuple(
        describe(match, table[match]) if match else unknown(name, table)
        for name, match in zip(names, known, strict=True)
    )
    refuse_repetition(metrics)
    return metrics


def split_names(text: str) -> list[str]:
    """Names in a text, separated by commas, spaces or lines."""
    return [name for name in re.split(r"[\s,;]+", text) if name]


def refuse_repetition(metrics: Sequence[MetricInfo]) -> None:
    """Raises ValueError for a metric named twice."""
    twice = sorted({metric.name for metric in metrics if metrics.count(metric) > 1})
    if twice:
        raise ValueError(f"Named more than once, which would count double: {', '.join(twice)}.")


def unknown(name: str, table: Mapping[str, Mapping[str, Any]]) -> MetricInfo:
    """Raises ValueError for a name that is no metric, with the closest ones."""
    usable = [key for key, config in table.items() if judges_one_image(config)]
    close = difflib.get_close_matches(name.lower(), usable, n=5, cutoff=0.5)
    hint = f"Did you mean {', '.join(close)}?" if close else f"There are: {', '.join(usable)}."
    raise ValueError(f"pyiqa has no metric named '{name}'. {hint}")


def judges_one_image(config: Mapping[str, Any]) -> bool:
    return config["metric_mode"] == "NR" and config["metric_opts"]["type"] not in NOT_OF_ONE_IMAGE


def describe(name: str, config: Mapping[str, Any]) -> MetricInfo:
    """The entry of a metric that judges a single image by itself. Raises ValueError for another."""
    architecture = config["metric_opts"]["type"]
    reason = NOT_OF_ONE_IMAGE.get(architecture)
    if config["metric_mode"] != "NR":
        reason = "compares an image with a reference"
    if reason:
        raise ValueError(
            f"The metric '{name}' {reason}. Here each image is judged by itself: use no-reference metrics such as "
            f"{', '.join(DEFAULT_METRICS)}."
        )
    return entry(name, config)


def entry(name: str, config: Mapping[str, Any]) -> MetricInfo:
    """A metric of any kind as pyiqa's table has it."""
    return MetricInfo(
        name,
        config["metric_opts"]["type"],
        bool(config.get("lower_better", False)),
        config.get("score_range", ""),
        config["metric_mode"] == "FR",
    )


class MetricModule(nn.Module):
    """A metric's network, and the modules it keeps in plain lists, out of reach of `.to(device)`."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.kept_in_lists = nn.ModuleList(
            item
            for module in network.modules()
            for value in vars(module).values()
            if isinstance(value, list)
            for item in value
            if isinstance(item, nn.Module)
        )


def score(network: nn.Module, metric: MetricInfo, image: Tensor, reference: Tensor | None = None) -> float:
    """One image `[1, 3, H, W]` in 0..1, float32, on the network's device, against a reference where it needs one.

    Raises ValueError when the metric refuses.
    """
    try:
        result = network(image) if reference is None else network(image, reference)
    except AssertionError as error:
        height, width = image.shape[-2:]
        raise ValueError(
            f"The metric '{metric.name}' cannot judge an image of {width} x {height} pixels: {error}. Enlarge the "
            "image or take the metric out of the list."
        ) from error
    value = result[0] if isinstance(result, (tuple, list)) else result
    if value.numel() != 1:
        raise ValueError(f"The metric '{metric.name}' gives {value.numel()} numbers for an image, not one score.")
    return float(value)
