"""Changes of a crop for runs that ask for them: few photos have to stand for many."""

from __future__ import annotations

import numpy as np
import torch

from ...models.image import to_bytes
from .config import AugmentSettings

FLIP_CHANCE = 0.5
CHANNELS_CHANCE = 0.3
RECOLOUR_CHANCE = 0.6


def augment(image: np.ndarray, settings: AugmentSettings, rng: np.random.Generator) -> np.ndarray:
    """A square uint8 crop `[S, S, 3]` turned, mirrored and recoloured, each where the settings have it."""
    if settings.rotate:
        image = np.rot90(image, int(rng.integers(4)))
    if settings.flip and rng.random() < FLIP_CHANCE:
        image = image[:, ::-1]
    if settings.channels and rng.random() < CHANNELS_CHANCE:
        image = image[..., rng.permutation(3)]
    if settings.recolour and rng.random() < RECOLOUR_CHANCE:
        image = recolour(image, rng)
    return np.ascontiguousarray(image)


def changes(settings: AugmentSettings) -> bool:
    """Whether anything is changed at all."""
    return settings.flip or settings.rotate or settings.channels or settings.recolour


def recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random contrast and brightness, a little different for each channel; grey photos get a tint."""
    gain = rng.uniform(0.6, 1.15) * (1 + rng.normal(0, 0.1, 3))
    offset = rng.uniform(-0.12, 0.2) + rng.normal(0, 0.05, 3)
    table = np.arange(256)[:, None] / 255 * gain + offset
    table = to_bytes(torch.from_numpy(table)).numpy()
    return np.stack([table[image[..., channel], channel] for channel in range(3)], axis=-1)
