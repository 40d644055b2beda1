"""Loading pyiqa's networks without its downloads, and importing it without packages that scoring does not use.

pyiqa's constructors fetch weights from fixed addresses into caches of their own; some take no path at all. What they
call is exchanged while a network is built, and put back after.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from .metrics import MissingWeights

# Their checkpoints hold the timm backbone as well, which is read from a hub first all the same.
BACKBONE_IN_CHECKPOINT = frozenset({"MANIQA", "HyperNet", "NIMA"})

# Modules to import before anything is exchanged, lest they keep what is exchanged; and those pyiqa does not find.
MODULES = {"LIQE": "pyiqa.archs.liqe_arch", "CFANet": "pyiqa.archs.topiq_arch", "LAIONAes": "clip.clip"}


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Let pyiqa be imported without OpenCV, and CLIP's tokenizer without the old setuptools.

    pyiqa imports OpenCV to read files, and scoring hands it tensors; CLIP takes `packaging` out of `pkg_resources`,
    which setuptools no longer has. Each gets an empty stand-in while it is not installed, gone again afterwards.
    """
    import packaging.version  # `import packaging` alone leaves out the submodule that CLIP reads

    contents: dict[str, dict[str, Any]] = {"cv2": {}, "pkg_resources": {"packaging": packaging}}
    stand_ins = {}
    for name, content in contents.items():
        if importlib.util.find_spec(name) is None:
            stand_ins[name] = types.ModuleType(name)
            stand_ins[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
            vars(stand_ins[name]).update(content)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


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
def environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable, for the length of a `with` block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


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

    module = importlib.import_module(MODULES[architecture]) if architecture in MODULES else None

    def refuse(url: str, destination: str, *_: Any, **__: Any) -> NoReturn:
        raise MissingWeights({metric: [url]}, Path(destination).parent)

    def find_clip(url: str, _root: str) -> str:
        path = folder / url.rpartition("/")[2]
        if not path.is_file():
            raise MissingWeights({metric: [url]}, folder)
        return str(path)

    with contextlib.ExitStack() as stack:
        stack.enter_context(hub_folder(folder))
        stack.enter_context(environment("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1"))
        stack.enter_context(exchanged(constants, "HF_HUB_OFFLINE", True))
        stack.enter_context(exchanged(download_util, "DEFAULT_CACHE_DIR", str(folder)))
        for owner in (torch.hub, download_util):
            stack.enter_context(exchanged(owner, "download_url_to_file", refuse))
        for owner in (clip_model, afineclip_model, *([module] if architecture == "LAIONAes" else [])):
            stack.enter_context(exchanged(owner, "_download", find_clip))
        if architecture == "LIQE":
            # It stores its text features on disk and would read back those of another checkpoint.
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(exchanged(module, "DEFAULT_CACHE_DIR", temporary))
        if architecture in BACKBONE_IN_CHECKPOINT:
            import timm

            stack.enter_context(exchanged(timm, "create_model", without_backbone_weights(timm.create_model)))
        yield
