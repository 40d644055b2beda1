"""Files of a tiny PURE, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import pure_training
from realisr.training.pure.config import PUREConfig


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start, its VQGAN and eight pairs of pictures; nothing may change them."""
    root = tmp_path_factory.mktemp("tiny-pure")
    pure_training.settings(root)
    return root


@pytest.fixture
def make_config(tiny: Path, tmp_path: Path) -> Any:
    """`make_config(**changes)`: settings on the tiny files, running in a folder of their own."""

    def make(**changes: Any) -> PUREConfig:
        return PUREConfig.model_validate({**pure_training.settings(tiny), "out": tmp_path / "run", **changes})

    return make
