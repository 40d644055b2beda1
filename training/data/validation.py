"""The fixed images that a run is looked at with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..engine.config import ValidationSettings
from ..engine.draws import Draws
from .config import DataSettings
from .crops import central_crop, cut
from .degradations import Degradations
from .reading import PhotoError, read_photo
from .sources import decode_text, folder_images, sidecar

SEED = 20
"""Of the degradation, the same in every run, so that runs can be compared."""


def validation_batch(
    settings: DataSettings, validation: ValidationSettings, crop: int | None = None, needs_prompt: bool = False
) -> dict[str, Any] | None:
    """The middles of the first images, each degraded as training photos are, with draws of its own; None without any.

    `hq` and `lq`: float32 `[N, 3, crop, crop]` in [0, 1]; `prompt` and `name`: lists of str, "" without a prompt.
    Raises ValueError for an image that cannot be used, is too small, or lacks the prompt that is needed;
    FileNotFoundError for a file or folder that is not there, or a folder without images.
    """
    files = image_files(validation)
    if not files:
        return None
    side = crop or settings.crop
    degradations = Degradations(settings.degradation)
    hq, lq, prompts = [], [], []
    for number, path in enumerate(files):
        try:
            photo = read_photo(path)
            pixels = cut(photo, central_crop(photo.size, side, settings.enlarge))
            prompts.append(read_prompt(path, settings.prompts, needs_prompt))
        except PhotoError as error:
            raise ValueError(f"validation image {path}: {error}") from None
        clean = from_pixels(pixels)
        hq.append(clean)
        lq.append(degradations(clean, Draws(SEED, number)))
    return {"hq": torch.cat(hq), "lq": torch.cat(lq), "prompt": prompts, "name": [path.name for path in files]}


def image_files(validation: ValidationSettings) -> list[Path]:
    """The images of the settings, files as they are and folders sorted, up to the largest number."""
    found: list[Path] = []
    for path in validation.images:
        if not path.exists():
            raise FileNotFoundError(f"validation.images: there is no {path}")
        found += folder_images(path) if path.is_dir() else [path]
    return found[: validation.count]


def read_prompt(photo: Path, ending: str, needed: bool) -> str:
    """The text beside an image, "" where there is none. Raises PhotoError when it is needed."""
    path = sidecar(photo, ending)
    text = decode_text(path.read_bytes(), path.name) if path.is_file() else ""
    if needed and not text:
        raise PhotoError(f"its prompt {path.name} is missing or empty")
    return text


def from_pixels(pixels: np.ndarray) -> torch.Tensor:
    """uint8 `[H, W, 3]` -> float32 `[1, 3, H, W]` in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous().float() / 255
