"""pyiqa's no-reference metrics: which there are, which files they need, and scoring with one.

pyiqa is optional and imported on use. Its list of metrics is read without importing it.
"""

from __future__ import annotations

import difflib
import importlib.util
import pickle
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

HUGGING_FACE = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
OPENAI_CLIP = "https://openaipublic.azureedge.net/clip/models/"
RN50 = OPENAI_CLIP + "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt"
VIT_B_32 = OPENAI_CLIP + "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt"

# Only what can be said before a run; other metrics say which file they miss when they are loaded.
WEIGHT_URLS: Mapping[str, tuple[str, ...]] = {
    "liqe": (HUGGING_FACE + "liqe_koniq.pt", VIT_B_32),
    "liqe_mix": (HUGGING_FACE + "liqe_mix.pt", VIT_B_32),
    "musiq": (HUGGING_FACE + "musiq_koniq_ckpt-e95806b9.pth",),
    "musiq-ava": (HUGGING_FACE + "musiq_ava_ckpt-e8d3f067.pth",),
    "musiq-spaq": (HUGGING_FACE + "musiq_spaq_ckpt-358bb6af.pth",),
    "musiq-paq2piq": (HUGGING_FACE + "musiq_paq2piq_ckpt-364c0c84.pth",),
    "maniqa": (HUGGING_FACE + "ckpt_koniq10k.pt",),
    "maniqa-kadid": (HUGGING_FACE + "ckpt_kadid10k.pt",),
    "maniqa-pipal": (HUGGING_FACE + "MANIQA_PIPAL-ae6d356b.pth",),
    "clipiqa": (RN50,),
    "clipiqa+": (HUGGING_FACE + "CLIP-IQA%2B_learned_prompts-603f3273.pth", RN50),
    "niqe": (HUGGING_FACE + "niqe_modelparameters.mat",),
    "brisque": (HUGGING_FACE + "brisque_svm_weights.pth",),
}

# pyiqa lists these as no-reference too.
NOT_OF_ONE_IMAGE = {
    "FID": "compares two sets of images",
    "InceptionScore": "judges a set of images, not one",
    "CLIPScore": "compares an image with a caption",
}


class MissingWeights(ValueError):
    """Weight files of metrics are not on this machine; the message says which ones, from where, and where they go.

    missing: name of a metric -> addresses of its files that are not in `folder`.
    """

    def __init__(self, missing: Mapping[str, Sequence[str]], folder: Path):
        several = len(missing) > 1
        names = ", ".join(f"'{name}'" for name in missing)
        needs = f"The metrics {names} need" if several else f"The metric {names} needs"
        urls = dict.fromkeys(url for each in missing.values() for url in each)
        files = "; ".join(f"{url.rpartition('/')[2]} from {url}" for url in urls)
        super().__init__(
            f"{needs} weights that are not in {folder}. Download and put there: {files}. "
            f"Nothing is downloaded on its own. Or take the metric{'s' if several else ''} out of the list."
        )


@dataclass(frozen=True)
class MetricInfo:
    """A metric as pyiqa lists it. score_range is pyiqa's own wording; `~` marks a rough bound."""

    name: str
    architecture: str
    lower_is_better: bool
    score_range: str


def install_command() -> str:
    """The commands that add pyiqa to this Python and change no package that is there."""
    pip = f'"{sys.executable}" -m pip install'
    light, alone = (
        " ".join(f'"{package}"' for package in packages) for packages in (LIGHT_PACKAGES, PACKAGES_WITHOUT_DEPENDENCIES)
    )
    return f"{pip} {light}   and then   {pip} --no-deps {alone}"


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
    """Metrics named in a text, separated by commas, spaces or lines, in its order; case does not matter.

    Raises ValueError for an empty list, a name twice, a name pyiqa does not have (with close ones), and metrics that
    need more than one image; ImportError when pyiqa is not installed.
    """
    table = catalogue()
    spelling = {name.lower(): name for name in table}
    names = [name for name in re.split(r"[\s,;]+", text) if name]
    if not names:
        raise ValueError(f"No metric is named. The paper's are: {', '.join(DEFAULT_METRICS)}.")
    known = [spelling.get(name.lower()) for name in names]
    metrics = tuple(
        describe(match, table[match]) if match else unknown(name, table)
        for name, match in zip(names, known, strict=True)
    )
    twice = sorted({metric.name for metric in metrics if metrics.count(metric) > 1})
    if twice:
        raise ValueError(f"Named more than once, which would count double: {', '.join(twice)}.")
    return metrics


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
    return MetricInfo(name, architecture, bool(config.get("lower_better", False)), config.get("score_range", ""))


def require_weights(metrics: Sequence[MetricInfo], folder: Path) -> None:
    """Raise MissingWeights where files of these metrics, as far as they are known, are not in `folder`."""
    missing = {}
    for metric in metrics:
        urls = WEIGHT_URLS.get(metric.name, ())
        missing[metric.name] = [url for url in urls if not (folder / url.rpartition("/")[2]).is_file()]
    if any(missing.values()):
        raise MissingWeights({name: urls for name, urls in missing.items() if urls}, folder)


def create_network(metric: MetricInfo, folder: Path, **options: Any) -> nn.Module:
    """The metric's network in float32 on the CPU, ready to score; weights come from `folder` only.

    options: pyiqa's own, for the metric's architecture. Raises MissingWeights, ValueError for a file that does not
    fit or runs code when opened, ImportError for a Python package that this metric needs besides pyiqa.
    """
    from .offline import importable, offline

    require_weights([metric], folder)
    try:
        with importable(), offline(metric.name, metric.architecture, folder):
            from pyiqa import create_metric

            return create_metric(metric.name, device="cpu", **options)
    except MissingWeights:
        raise
    except ModuleNotFoundError as error:
        raise ImportError(
            f"The metric '{metric.name}' needs the Python package {error.name}, which is not installed. The default "
            f"metrics need: {install_command()}"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"A weight file of '{metric.name}' in {folder} runs code when opened, so it was not opened. Use the file "
            f"pyiqa publishes. Details: {first_line(error)}"
        ) from error
    except (KeyError, RuntimeError, OSError, EOFError) as error:
        raise ValueError(
            f"The metric '{metric.name}' cannot be loaded from the files in {folder}: one is damaged or belongs to "
            "another metric, or a Hugging Face repository it needs is not in this machine's cache. Details: "
            f"{first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"


def score(network: nn.Module, metric: MetricInfo, image: Tensor) -> float:
    """One image `[1, 3, H, W]` in 0..1, float32, on the network's device. Raises ValueError when the metric refuses."""
    try:
        result = network(image)
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
