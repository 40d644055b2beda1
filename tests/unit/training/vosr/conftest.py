"""Tiny VOSR runs for the tests of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.training import TrainingServer, save_photos

MICRO = {"preset": "nano", "resolution": 16, "dim": 160, "depth": 1, "num_heads": 5}
"""The smallest network that `start: condition` has room in."""


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def make_settings(photos: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a tiny run of flow matching into a folder; keyword arguments replace or add keys at the top."""

    def make(out: Path, **changes: Any) -> dict[str, Any]:
        return {
            "out": str(out),
            "steps": 4,
            "batch": 2,
            "precision": "fp32",
            "workers": 0,
            "ema": 0.9,
            "model": MICRO,
            "data": {"sources": [{"folder": str(photos)}], "crop": 16, "degradation": [{"kind": "simple"}]},
            "optimizer": {"learning_rate": 1e-3},
            "log": {"every": 1, "trackers": []},
            "checkpoints": {"every": 2},
            **changes,
        }

    return make


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingServer]:
    with TrainingServer(tmp_path_factory.mktemp("trainings"), "vosr") as started:
        yield started
