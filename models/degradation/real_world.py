"""The second-order degradation of Real-ESRGAN (arXiv 2107.10833) with the settings of VOSR (arXiv 2604.03225)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..image import to_levels
from .draws import Range, happens, pick, uniform, uniforms, weighted_pick
from .jpeg import jpeg
from .kernels import KernelOptions, draw_final_sinc, draw_kernel, filter_image
from .noise import gaussian_noise, poisson_noise
from .simple import low_size

RESIZE_MODES = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Round:
    """One round: blur, resize, noise, JPEG."""

    kernel: KernelOptions
    blur_chance: float
    resize_weights: tuple[float, float, float]
    """Chances of enlarging, shrinking and keeping the size."""
    enlarge: Range
    """Factors."""
    shrink: Range
    """Factors."""
    gaussian_sigma: Range
    """Standard deviations in parts of full scale."""
    poisson_scale: Range
    """Factors of the shot noise."""
    gaussian_chance: float = 0.5
    """Chance of Gaussian noise; otherwise it is Poisson noise."""
    grey_chance: float = 0.4
    """Chance, for each image, of noise that is equal in all channels."""
    jpeg_quality: Range = (30.0, 95.0)
    """1 to 100."""

    def blur(self, image: Tensor, generator: torch.Generator) -> Tensor:
        if not happens(generator, self.blur_chance):
            return image
        return filter_image(image, draw_kernel(self.kernel, generator)).clamp(0, 1)

    def resize_factor(self, generator: torch.Generator) -> float:
        choice = weighted_pick(generator, self.resize_weights)
        ranges = (self.enlarge, self.shrink, (1.0, 1.0))
        return uniform(generator, ranges[choice])

    def add_noise(self, image: Tensor, generator: torch.Generator) -> Tensor:
        count = image.shape[0]
        gaussian = happens(generator, self.gaussian_chance)
        strengths = uniforms(generator, self.gaussian_sigma if gaussian else self.poisson_scale, count)
        grey = uniforms(generator, (0.0, 1.0), count) < self.grey_chance
        noise = gaussian_noise if gaussian else poisson_noise
        return (image + noise(image, strengths, grey, generator)).clamp(0, 1)

    def compress(self, image: Tensor, generator: torch.Generator) -> Tensor:
        qualities = uniforms(generator, self.jpeg_quality, image.shape[0])
        return jpeg(image, [round(quality) for quality in qualities.tolist()])


FIRST_ROUND = Round(
    kernel=KernelOptions(sigma=(0.2, 3.0)),
    blur_chance=1.0,
    resize_weights=(0.2, 0.7, 0.1),
    enlarge=(1.0, 1.5),
    shrink=(0.15, 1.0),
    gaussian_sigma=(1 / 255, 30 / 255),
    poisson_scale=(0.05, 3.0),
)
SECOND_ROUND = Round(
    kernel=KernelOptions(sigma=(0.2, 1.5)),
    blur_chance=0.8,
    resize_weights=(0.3, 0.4, 0.3),
    enlarge=(1.0, 1.2),
    shrink=(0.3, 1.0),
    gaussian_sigma=(1 / 255, 25 / 255),
    poisson_scale=(0.05, 2.5),
)


@dataclass(frozen=True)
class RealWorldDegradation:
    """Rounds of random degradation, then the closing resize, sinc filter and JPEG in random order.

    Each round after the first resizes relative to the low-resolution size. The JPEG of the last round is the closing's
    own when there are two. Raises ValueError for a scale below 1 and for no round.
    """

    scale: float = 4.0
    """How many times smaller the result is."""
    rounds: tuple[Round, ...] = (FIRST_ROUND, SECOND_ROUND)
    """These two are the second-order model; with `(FIRST_ROUND,)` the closing follows the first round."""
    sinc_chance: float = 0.8
    """Chance of the closing sinc filter."""
    jpeg_last_chance: float = 0.5
    """Chance that the closing JPEG comes after resize and sinc filter, not before."""

    def __post_init__(self):
        if self.scale < 1:
            raise ValueError(f"degradation scale is {self.scale}; it must be 1 or more")
        if not self.rounds:
            raise ValueError("a real-world degradation needs at least one round")

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Image `[B, 3, H, W]` in [0, 1] -> `[B, 3, round(H / scale), round(W / scale)]` in 8-bit levels.

        Kernels, resizes and the order are drawn once per call, noise strength and JPEG quality per image.
        """
        base, low = low_size(image, 1), low_size(image, self.scale)
        for index, stage in enumerate(self.rounds):
            image = stage.blur(image, generator)
            factor = stage.resize_factor(generator)
            image = random_resize(image, (max(1, int(base[0] * factor)), max(1, int(base[1] * factor))), generator)
            image = stage.add_noise(image, generator)
            if index < len(self.rounds) - 1 or len(self.rounds) == 1:
                image = stage.compress(image, generator)
            base = low
        return self.close(image, low, generator)

    def close(self, image: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """{resize, sinc, JPEG} or {JPEG, resize, sinc}, rounded to 8 bits."""
        last = self.rounds[-1]
        jpeg_last = happens(generator, self.jpeg_last_chance)
        if not jpeg_last:
            image = last.compress(image, generator)
        image = random_resize(image, size, generator)
        sinc = draw_final_sinc(generator, last.kernel.sizes, self.sinc_chance)
        image = filter_image(image, sinc).clamp(0, 1)
        if jpeg_last:
            image = last.compress(image, generator)
        return to_levels(image)


def random_resize(image: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Resize with a random one of area, bilinear and bicubic, without antialiasing (as the degradation defines it)."""
    mode = RESIZE_MODES[pick(generator, len(RESIZE_MODES))]
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size, mode=mode).clamp(0, 1)
