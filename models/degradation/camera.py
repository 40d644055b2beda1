"""What a shorter focal length makes of a scene: a lens blur that need not be round, sampling, little noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .kernels import KERNEL_SIDE, filter_image, squared_distance
from .simple import SimpleDegradation


@dataclass(frozen=True)
class CameraDegradation:
    """Gaussian blur with two axes, then the antialiased reduction, noise and JPEG of the simple degradation.

    Raises ValueError for a scale below 1, a blur that is not positive and negative noise.
    """

    scale: float = 4.0
    """How many times smaller the result is."""
    sigma: tuple[float, float] = (2.0, 2.0)
    """Standard deviations of the blur along its axes, in pixels of the sharp image."""
    rotation: float = 0.0
    """Of the blur's axes, radians."""
    noise_sigma: float = 0.0
    """Standard deviation in parts of full scale."""
    jpeg_quality: int | None = None
    """1 to 100, or None to leave compression out."""

    def __post_init__(self):
        if min(self.sigma) <= 0:
            raise ValueError(f"the camera blur's sigma is {self.sigma}; both must be greater than 0")
        self.sampling  # noqa: B018 - checks the rest

    @property
    def sampling(self) -> SimpleDegradation:
        """What follows the blur."""
        return SimpleDegradation(self.scale, 0.0, self.noise_sigma, self.jpeg_quality)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Image `[B, 3, H, W]` in [0, 1] -> `[B, 3, round(H / scale), round(W / scale)]` in 8-bit levels."""
        return self.sampling(filter_image(image, self.kernel()).clamp(0, 1), generator)

    def kernel(self) -> Tensor:
        """The blur `[S, S]`, S odd, three standard deviations wide to each side or more. Sums to one."""
        side = max(KERNEL_SIDE, 2 * math.ceil(3 * max(self.sigma)) + 1)
        kernel = torch.exp(-0.5 * squared_distance(side, *self.sigma, self.rotation))
        return kernel / kernel.sum()
