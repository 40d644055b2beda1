"""JPEG compression of image tensors, by a real encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..image import from_bytes, to_bytes

QUALITY_RANGE = (1, 100)


def jpeg(image: Tensor, qualities: Sequence[int]) -> Tensor:
    """Compress and decompress each image of `[B, 3, H, W]` in [0, 1] at its own quality (1 to 100).

    libjpeg does the work, through torchvision: exactly the artefacts that files have, colour subsampling
    included, on the CPU (so that all devices agree) and without gradient. Raises ValueError for a quality out of range.
    """
    from torchvision.io import decode_jpeg, encode_jpeg  # takes seconds to import, and few runs compress

    low, high = QUALITY_RANGE
    for quality in qualities:
        if not low <= quality <= high:
            raise ValueError(f"JPEG quality is {quality}; use {low} (worst) to {high} (best)")
    if len(qualities) != image.shape[0]:
        raise ValueError(f"{len(qualities)} JPEG qualities for {image.shape[0]} images: give one for each")
    pairs = zip(to_bytes(image).cpu(), qualities, strict=True)
    return from_bytes(torch.stack([decode_jpeg(encode_jpeg(pixels, quality)) for pixels, quality in pairs])).to(image)
