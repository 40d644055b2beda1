"""Pictures of a run: rows of images side by side, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ...models.image import to_bytes
from .files import write_atomically

GAP = 4
"""Pixels of white between images."""


def grid(columns: Sequence[Tensor]) -> Tensor:
    """Images `[N, 3, H, W]` in [0, 1], one column each -> one image `[3, N (H + gap) + gap, ...]`, N rows."""
    count, _, height, width = columns[0].shape
    canvas = torch.ones(3, count * (height + GAP) + GAP, len(columns) * (width + GAP) + GAP)
    for column, images in enumerate(columns):
        for row, image in enumerate(images):
            top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
            canvas[:, top : top + height, left : left + width] = image.float().cpu().clamp(0, 1)
    return canvas


def write_png(path: Path, image: Tensor) -> Path:
    """Write `[3, H, W]` in [0, 1]."""
    picture = Image.fromarray(to_bytes(image.permute(1, 2, 0)).contiguous().numpy())
    return write_atomically(path, lambda partial: picture.save(partial, format="PNG"))


def psnr(image: Tensor, reference: Tensor) -> float:
    """Mean over images of the PSNR in dB; values in [0, 1]."""
    error = (image.float().cpu() - reference.float().cpu()).square().flatten(1).mean(dim=1)
    return (-10 * error.clamp(min=1e-10).log10()).mean().item()
