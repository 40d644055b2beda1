"""A degradation with every parameter known: blur, downscale, Gaussian noise, JPEG, in that order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..image import gaussian_blur, to_levels
from .jpeg import jpeg


@dataclass(frozen=True)
class SimpleDegradation:
    """The four strengths. Raises ValueError for a scale below 1 and a negative sigma."""

    scale: float = 2.0
    """How many times smaller the result is."""
    blur_sigma: float = 0.0
    """Standard deviation in pixels of the sharp image."""
    noise_sigma: float = 0.0
    """Standard deviation in parts of full scale (10 / 255 and the like)."""
    jpeg_quality: int | None = None
    """1 to 100, or None to leave compression out."""

    def __post_init__(self):
        if self.scale < 1:
            raise ValueError(f"degradation scale is {self.scale}; it must be 1 or more")
        if self.blur_sigma < 0 or self.noise_sigma < 0:
            raise ValueError(f"blur sigma {self.blur_sigma} and noise sigma {self.noise_sigma} must not be negative")

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Image `[B, 3, H, W]` in [0, 1] -> `[B, 3, round(H / scale), round(W / scale)]` in 8-bit levels."""
        if self.blur_sigma:
            image = gaussian_blur(image, self.blur_sigma, math.ceil(3 * self.blur_sigma))
        if self.scale > 1:
            image = F.interpolate(image, low_size(image, self.scale), mode="bicubic", antialias=True).clamp(0, 1)
        if self.noise_sigma:
            noise = torch.randn(image.shape, generator=generator, device=generator.device, dtype=image.dtype)
            image = (image + self.noise_sigma * noise.to(image.device)).clamp(0, 1)
        if self.jpeg_quality is not None:
            return jpeg(image, [self.jpeg_quality] * image.shape[0])
        return to_levels(image)


def low_size(image: Tensor, scale: float) -> tuple[int, int]:
    """(height, width) of `[B, C, H, W]` made `scale` times smaller, rounded, at least one pixel."""
    height, width = image.shape[-2:]
    return max(1, round(height / scale)), max(1, round(width / scale))
