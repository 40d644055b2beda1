"""How VOSR reads an image with DINOv2: what goes in and which block's tokens come out (arXiv 2604.03225)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

INPUT_SIZE = 448
"""Side in pixels of the encoder's input, whatever the image; with patches of 14 it gives 32 x 32 tokens."""

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def preprocess(images: Tensor, size: int = INPUT_SIZE) -> Tensor:
    """Images `[B, 3, H, W]` in 0..1 -> normalised `[B, 3, size, size]`.

    The aspect ratio is not kept. Bicubic with a = -0.75 and no antialiasing, as the networks were trained.
    """
    resized = F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False, antialias=False)
    mean, std = (
        torch.tensor(values, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
        for values in (IMAGE_MEAN, IMAGE_STD)
    )
    return (resized.clamp(0, 1) - mean) / std


def feature_block(depth: int) -> int:
    """The block, counted from 0, whose tokens VOSR takes from an encoder of `depth` blocks: 8 of 12, 17 of 24."""
    return depth * 17 // 24
