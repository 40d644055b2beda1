"""A tiny DreamSR run's files, written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.dreamsr_training import settings, write_models, write_photos
from host_env import Host


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="package")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def method(models: Path, photos: Path, comfyui: Host, tmp_path: Path) -> Callable[..., Any]:
    """Makes methods, built on the CPU or the named device, from changes of a run's settings."""

    def make(device: str = "cpu", **changes: Any) -> Any:
        from realisr.training.dreamsr.config import DreamSRConfig
        from realisr.training.dreamsr.method import DreamSRMethod

        content = settings(models, photos, comfyui.comfyui, tmp_path / changes.pop("run", "run"), **changes)
        made = DreamSRMethod(DreamSRConfig.model_validate(content))
        made.build(torch.device(device))
        return made

    return make
