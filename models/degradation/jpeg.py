"""JPEG compression of image tensors, by a real encoder and decoder."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

QUALITY_RANGE = (1, 100)


def jpeg(image: Tensor, qualities: Sequence[int]) -> Tensor:
    """Compress and decompress each image of `[B, 3, H, W]` in [0, 1] at its own quality (1 to 100).

    libjpeg does the work, through Pillow: exactly the artefacts that files have, colour subsampling
    included, on the CPU and without gradient. Raises ValueError for a quality out of range.
    """
    if len(qualities) != image.shape[0]:
        raise ValueError(f"{len(qualities)} JPEG qualities for {image.shape[0]} images: give one for each")
    pairs = zip(to_uint8(image), qualities, strict=True)
    decoded = np.stack([recompress(pixels, quality) for pixels, quality in pairs])
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).to(image.device, image.dtype) / 255


def to_uint8(image: Tensor) -> np.ndarray:
    """`[B, 3, H, W]` in [0, 1] -> `[B, H, W, 3]` of rounded 8-bit levels."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def recompress(pixels: np.ndarray, quality: int) -> np.ndarray:
    """One 8-bit image `[H, W, 3]` through a JPEG file in memory."""
    low, high = QUALITY_RANGE
    if not low <= quality <= high:
        raise ValueError(f"JPEG quality is {quality}; use {low} (worst) to {high} (best)")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=int(quality))
    buffer.seek(0)
    return np.asarray(Image.open(buffer).convert("RGB"))
