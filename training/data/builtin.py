"""The photos that the scikit-image package itself carries, and which of them training may read."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .reading import read_photo

EVALUATION_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png")
"""Kept for benchmarks/nano_quality.py; training never reads them."""
VALIDATION_PHOTOS = ("rocket.jpg",)
"""For validation during training; training never reads it."""
TRAINING_PHOTOS = (
    "motorcycle_left.png",
    "motorcycle_right.png",
    "camera.png",
    "brick.png",
    "grass.png",
    "gravel.png",
    "coins.png",
    "moon.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "page.png",
    "text.png",
    "clock_motion.png",
    "color.png",
)


def builtin_folder() -> Path:
    """Where scikit-image keeps them. Raises ModuleNotFoundError with the command that installs it."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("built-in photos need scikit-image: pip install scikit-image")
    return Path(spec.origin).parent / "data"


def builtin_photos(names: Sequence[str]) -> list[np.ndarray]:
    """Photos by name, as uint8 `[H, W, 3]`."""
    return [np.array(read_photo(builtin_folder() / name)) for name in names]
