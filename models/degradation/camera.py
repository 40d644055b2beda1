"""What a camera with a shorter lens makes of a scene: optical blur, the sensor's noise, and its own processing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..image import gaussian_blur, to_levels
from .jpeg import jpeg
from .kernels import filter_image, squared_distance
from .noise import standard_normal
from .simple import low_size

SHARPENED = 1.0
"""Standard deviation, in pixels of the small picture, of the blur that sharpening works against."""


@dataclass(frozen=True)
class CameraDegradation:
    """Gaussian blur, averaging over the larger pixels, noise, sharpening, JPEG, in that order.

    Raises ValueError for a scale below 1, a blur that is not positive, and negative strengths.
    """

    scale: float = 4.0
    """How many times smaller the result is."""
    sigma: float = 2.4
    """Standard deviation of the blur along its longer axis, in pixels of the sharp image."""
    aspect: float = 1.0
    """The shorter axis over the longer one."""
    angle: float = 0.0
    """Of the longer axis, radians."""
    read_noise: float = 0.0
    """Standard deviation in parts of full scale, everywhere alike."""
    shot_noise: float = 0.0
    """Variance for each part of full scale of brightness."""
    noise_smoothing: float = 0.0
    """Standard deviation in pixels of the small picture of the blur of the noise, which demosaicing leaves."""
    sharpen: float = 0.0
    """Amount of an unsharp mask."""
    jpeg_quality: int | None = None
    """1 to 100, or None to leave compression out."""

    def __post_init__(self):
        if self.scale < 1:
            raise ValueError(f"degradation scale is {self.scale}; it must be 1 or more")
        if self.sigma <= 0 or not 0 < self.aspect <= 1:
            raise ValueError(
                f"camera blur of sigma {self.sigma} and aspect {self.aspect}; use sigma > 0, aspect in (0, 1]"
            )
        if min(self.read_noise, self.shot_noise, self.noise_smoothing, self.sharpen) < 0:
            raise ValueError("noise, its smoothing and sharpening of a camera must not be negative")

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Image `[B, 3, H, W]` in [0, 1] -> `[B, 3, round(H / scale), round(W / scale)]` in 8-bit levels."""
        size = low_size(image, self.scale)
        image = filter_image(image, self.kernel())
        image = F.interpolate(image, size, mode="area") if self.scale > 1 else image
        image = image + self.noise(image, generator)
        if self.sharpen:
            image = image + self.sharpen * (image - gaussian_blur(image, SHARPENED, math.ceil(3 * SHARPENED)))
        image = image.clamp(0, 1)
        if self.jpeg_quality is not None:
            return jpeg(image, [self.jpeg_quality] * image.shape[0])
        return to_levels(image)

    def kernel(self) -> Tensor:
        """The blur `[S, S]`, S odd, which sums to one."""
        side = 2 * math.ceil(3 * self.sigma) + 1
        kernel = torch.exp(-0.5 * squared_distance(side, self.sigma, self.sigma * self.aspect, self.angle))
        return kernel / kernel.sum()

    def noise(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Normal noise of variance `read_noise^2 + shot_noise * brightness`, smoothed without loss of variance."""
        variance = self.read_noise**2 + self.shot_noise * image.clamp(min=0)
        noise = standard_normal(image.shape, image, generator)
        if self.noise_smoothing > 0:
            radius = math.ceil(3 * self.noise_smoothing)
            offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
            line = torch.exp(-(offsets**2) / (2 * self.noise_smoothing**2))
            line = line / line.sum()
            noise = gaussian_blur(noise, self.noise_smoothing, radius) / float((line**2).sum())
        return noise * variance.sqrt()
