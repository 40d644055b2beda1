"""pyiqa's networks without its downloads, and without packages that scoring does not use.

pyiqa's constructors fetch weights from fixed addresses into caches of their own. What takes an argument or a setting
is told where the files are; what takes neither is exchanged while a network is built, and put back after.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import os
import pickle
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from .metrics import MetricInfo, install_command
from .weights import WEIGHT_URLS, MissingWeights, UnpublishedWeights, find_file, require_published, require_weights

ARGUMENTS: dict[str, dict[str, Any]] = {"CFANet": {"backbone_pretrain": False}}
"""What architectures are told. TOPIQ's checkpoint (CFANet) holds its backbone. `pretrained_model_path` is left alone:
not every metric has it, and TOPIQ lets a file that does not fit pass with it."""

TIMM_BACKBONE_IN_CHECKPOINT = frozenset({"MANIQA", "HyperNet", "NIMA"})
"""Their checkpoints hold the timm backbone too, but its pretrained weights are asked for with no way to say no."""

MODULES = {"LIQE": "pyiqa.archs.liqe_arch", "CFANet": "pyiqa.archs.topiq_arch", "LAIONAes": "clip.clip"}
"""Modules to import before anything is exchanged, lest they keep what is exchanged; and those pyiqa does not find."""


def create_network(metric: MetricInfo, folder: Path, **options: Any) -> nn.Module:
    """The metric's network in float32 on the CPU, ready to score; weights come from `folder` only.

    options: pyiqa's own, for the metric's architecture. Raises MissingWeights, UnpublishedWeights for a CLIP that is
    not OpenAI's, ValueError for a file that does not fit or runs code when opened, ImportError for a Python package
    that this metric needs besides pyiqa.
    """
    require_weights([metric], folder)
    try:
        with importable(), offline(metric.name, metric.architecture, folder):
            from pyiqa import create_metric

            return create_metric(metric.name, device="cpu", **ARGUMENTS.get(metric.architecture, {}), **options)
    except (MissingWeights, UnpublishedWeights):
        raise
    except ModuleNotFoundError as error:
        raise ImportError(
            f"The metric '{metric.name}' needs the Python package {error.name}, which is not installed. The default "
            f"metrics need: {install_command()}"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"A weight file of '{metric.name}' in {folder} ({file_names(metric)}) runs code when opened, so it was not "
            f"opened. Use the file pyiqa publishes. Details: {first_line(error)}"
        ) from error
    # pyiqa checks nothing: a damaged file ends in whatever its networks and readers stumble over.
    except Exception as error:
        raise ValueError(
            f"The metric '{metric.name}' cannot be loaded from the files in {folder} ({file_names(metric)}): one is "
            "damaged or belongs to another metric, or a Hugging Face repository it needs is not in this machine's "
            f"cache. Download again what is damaged. Details: {first_line(error)}"
        ) from error


def file_names(metric: MetricInfo) -> str:
    """The files a metric is known to need, for messages."""
    return ", ".join(url.rpartition("/")[2] for url in WEIGHT_URLS.get(metric.name, ())) or "see pyiqa's list"


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"


class FaceRestoreHelper:
    """Stands for facexlib's class of this name, which TOPIQ imports for all its variants and the face ones make."""

    def __init__(self, *_: Any, **__: Any):
        raise ModuleNotFoundError("No module named 'facexlib'", name="facexlib")


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Let pyiqa be imported without OpenCV, pandas and facexlib, and CLIP's tokenizer without the old setuptools.

    pyiqa imports OpenCV to read files, and 0.1.15 pandas for data sets, and scoring hands it tensors; TOPIQ imports
    facexlib, which only its face variants use; CLIP takes `packaging` out of `pkg_resources`, which setuptools no
    longer has. Each gets a stand-in while it is not installed, gone again afterwards. A data set of pyiqa's has Pillow
    read pictures that are cut short, for everyone; that is put back.
    """
    import packaging.version  # `import packaging` alone leaves out the submodule that CLIP reads
    from PIL import ImageFile

    truncated = ImageFile.LOAD_TRUNCATED_IMAGES

    stand_ins: dict[str, dict[str, Any]] = {
        "cv2": {},
        "pandas": {},
        "pkg_resources": {"packaging": packaging},
        "facexlib.utils.face_restoration_helper": {"FaceRestoreHelper": FaceRestoreHelper},
    }
    absent = {name for name in stand_ins if importlib.util.find_spec(name.partition(".")[0]) is None}
    before = {name: sys.modules[name] for name in absent & sys.modules.keys()}
    for name in absent:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(stand_ins[name])
        sys.modules[name] = module
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated
        for name in absent:
            del sys.modules[name]
        sys.modules.update(before)


@contextlib.contextmanager
def exchanged(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value, for the length of a `with` block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def environment(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable, or take it away, for the length of a `with` block."""

    def change(to: str | None) -> None:
        if to is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = to

    before = os.environ.get(name)
    change(value)
    try:
        yield
    finally:
        change(before)


@contextlib.contextmanager
def hub_folder(folder: Path) -> Iterator[None]:
    """Where torch.hub and torchvision look for weights (`<folder>/checkpoints`), for the length of a `with` block."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(folder))
    try:
        yield
    finally:
        torch.hub.set_dir(before)


def without_backbone_weights(create_model: Callable[..., Any]) -> Callable[..., Any]:
    """timm.create_model, with random weights where it would fetch pretrained ones."""

    def create(*arguments: Any, **options: Any) -> Any:
        return create_model(*arguments, **{**options, "pretrained": False})

    return create


@contextlib.contextmanager
def offline(metric: str, architecture: str, folder: Path) -> Iterator[None]:
    """While this lasts pyiqa finds the weights of `metric` in `folder`, opens no pickle that runs code, and downloads
    nothing: a file that is not there raises MissingWeights."""
    from huggingface_hub import constants
    from pyiqa.archs import afineclip_model, clip_model
    from pyiqa.utils import download_util
    from torchvision.models import _api

    module = importlib.import_module(MODULES[architecture]) if architecture in MODULES else None

    def refuse(url: str, destination: str, *_: Any, **__: Any) -> NoReturn:
        raise MissingWeights({metric: [url]}, Path(destination).parent)

    def load_backbone(url: str, *_: Any, **__: Any) -> Any:
        path = find_file(url, folder)
        if path is None:
            raise MissingWeights({metric: [url]}, folder)
        return torch.load(path, map_location="cpu", weights_only=True)

    def find_clip(url: str, _root: str) -> str:
        path = folder / url.rpartition("/")[2]
        if not path.is_file():
            raise MissingWeights({metric: [url]}, folder)
        require_published(path, url)
        return str(path)

    with contextlib.ExitStack() as stack:
        # Settings: torch's own folder, and its refusal of pickles that run code, over pyiqa's weights_only=False.
        stack.enter_context(hub_folder(folder))
        stack.enter_context(environment("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1"))
        # torch refuses to load anything while both are set.
        stack.enter_context(environment("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None))
        # Read from the environment when huggingface_hub is imported, which was long ago.
        stack.enter_context(exchanged(constants, "HF_HUB_OFFLINE", True))
        # pyiqa's folder for every file it publishes is a constant, made on import.
        stack.enter_context(exchanged(download_util, "DEFAULT_CACHE_DIR", str(folder)))
        # Neither has a setting that keeps it from downloading. pyiqa imported torch's function by name.
        for owner in (torch.hub, download_util):
            stack.enter_context(exchanged(owner, "download_url_to_file", refuse))
        # It would look into torch.hub's `checkpoints` alone, and not where the other files are.
        stack.enter_context(exchanged(_api, "load_state_dict_from_url", load_backbone))
        # Metrics name their CLIP (LIQE insists on it) and never pass download_root on.
        for owner in (clip_model, afineclip_model, *([module] if architecture == "LAIONAes" else [])):
            stack.enter_context(exchanged(owner, "_download", find_clip))
        if architecture == "LIQE":
            # It stores its text features on disk and would read back those of another checkpoint.
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(exchanged(module, "DEFAULT_CACHE_DIR", temporary))
        if architecture in TIMM_BACKBONE_IN_CHECKPOINT:
            import timm

            stack.enter_context(exchanged(timm, "create_model", without_backbone_weights(timm.create_model)))
        yield
