"""FID (Heusel et al. 2017) in clean-fid's way, image by image: memory does not grow with their number.

pyiqa's own takes folders and keeps the features of all; here Inception's features of each image go to disk, and a
Gaussian is summed up over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

SIDE = 299
"""What Inception sees, in pixels."""


def patches(image: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """The image `[H, W, 3]` itself for side 0, else the squares that tile it from the top left."""
    if not side:
        yield image
        return
    height, width = image.shape[:2]
    for top in range(0, height - side + 1, side):
        for left in range(0, width - side + 1, side):
            yield image[top : top + side, left : left + side]


def prepared(image: np.ndarray) -> torch.Tensor:
    """uint8 `[H, W, 3]` -> float32 `[3, 299, 299]` in -1..1: Pillow's bicubic on each channel in float (clean-fid)."""
    channels = [
        np.asarray(Image.fromarray(image[..., index].astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for index in range(3)
    ]
    return (torch.from_numpy(np.stack(channels)).clamp(0, 255) - 128) / 128


def features(inception: Any, image: np.ndarray, patch: int, device: torch.device) -> np.ndarray:
    """Inception's pooled features `[N, 2048]`, float32, of the N patches of an image, one at a time."""
    rows = [
        inception(prepared(each)[None].to(device), False, False)[0].flatten(1).float().cpu().numpy()
        for each in patches(image, patch)
    ]
    return np.concatenate(rows) if rows else np.empty((0, 2048), np.float32)


class Gaussian:
    """Mean and covariance of features, summed up in float64 part by part (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: np.ndarray | float = 0.0
        self._scatter: np.ndarray | float = 0.0

    def add(self, rows: np.ndarray) -> None:
        """rows: `[N, D]`."""
        if not len(rows):
            return
        rows = rows.astype(np.float64)
        mean = rows.mean(axis=0)
        centred, shift = rows - mean, mean - self.mean
        total = self.count + len(rows)
        self._scatter = self._scatter + centred.T @ centred + np.outer(shift, shift) * (self.count * len(rows) / total)
        self.mean = self.mean + shift * (len(rows) / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        return np.asarray(self._scatter) / (self.count - 1)

    @classmethod
    def of(cls, parts: Iterable[np.ndarray]) -> Gaussian:
        made = cls()
        for part in parts:
            made.add(part)
        return made


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 sqrt(C1 C2)) of two Gaussians of at least two features each.

    tr sqrt(C1 C2) is the sum of the roots of the eigenvalues of the symmetric sqrt(C1) C2 sqrt(C1), which stays exact
    where fewer images than features make both singular and a general matrix root loses digits. Raises ValueError for a
    set of one.
    """
    if min(first.count, second.count) < 2:
        raise ValueError("FID compares sets; two images (or patches) at least are needed")
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ second.covariance @ root)
    difference = np.asarray(first.mean) - np.asarray(second.mean)
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return float(difference @ difference + traces - 2 * np.sqrt(product.clip(min=0)).sum())
