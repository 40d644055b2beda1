"""Degradations that training draws from: a mixture of camera-like, simple and real-world ones.

Each `draw` returns a function of an image `[B, 3, H, W]` in [0, 1] and a generator that gives the smaller image in
8-bit levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..models.degradation.kernels import filter_image, pad_kernel, squared_distance
from ..models.degradation.real_world import RealWorldDegradation
from ..models.degradation.simple import SimpleDegradation

Degrade = Callable[[Tensor, torch.Generator], Tensor]
KERNEL_SIZE = 21
"""Side in pixels of the camera blur: three standard deviations of the widest one."""


class Degradations(Protocol):
    """What training pairs are made with."""

    def draw(self, rng: np.random.Generator) -> Degrade: ...


@dataclass(frozen=True)
class CameraDegradation:
    """What a shorter focal length makes of a scene: a lens blur that no axis has to itself, sampling, little noise."""

    scale: int = 4
    sigma: tuple[float, float] = (2.0, 2.0)
    """Standard deviations of the Gaussian blur along its axes, in pixels of the sharp image."""
    rotation: float = 0.0
    """Of the blur's axes, in radians."""
    noise_sigma: float = 0.0
    """Standard deviation in parts of full scale."""
    jpeg_quality: int | None = None

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        kernel = torch.exp(-0.5 * squared_distance(KERNEL_SIZE, *self.sigma, self.rotation))
        blurred = filter_image(image, pad_kernel(kernel / kernel.sum())).clamp(0, 1)
        return SimpleDegradation(self.scale, 0.0, self.noise_sigma, self.jpeg_quality)(blurred, generator)


def draw_scale(rng: np.random.Generator, scales: Sequence[int], weights: Sequence[float]) -> int:
    """A scale; its chance is its weight over their sum."""
    return int(rng.choice(scales, p=np.array(weights) / sum(weights)))


@dataclass(frozen=True)
class CameraRange:
    """The camera degradations training draws from."""

    scales: tuple[int, ...] = (2, 3, 4)
    scale_weights: tuple[float, ...] = (0.3, 0.1, 0.6)
    sigma: tuple[float, float] = (0.2, 0.8)
    """Standard deviations of the blur in pixels of the small image."""
    round_chance: float = 0.5
    """Chance of a blur that is alike along both axes."""
    noise: tuple[float, float] = (0.0, 3.0)
    """Standard deviations in 8-bit levels."""
    jpeg_chance: float = 0.5
    quality: tuple[int, int] = (85, 100)

    def draw(self, rng: np.random.Generator) -> CameraDegradation:
        scale = draw_scale(rng, self.scales, self.scale_weights)
        along, across = (float(value) * scale for value in rng.uniform(*self.sigma, size=2))
        round_blur = rng.random() < self.round_chance
        compressed = rng.random() < self.jpeg_chance
        return CameraDegradation(
            scale=scale,
            sigma=(along, along if round_blur else across),
            rotation=float(rng.uniform(0, math.pi)),
            noise_sigma=float(rng.uniform(*self.noise)) / 255,
            jpeg_quality=int(rng.integers(self.quality[0], self.quality[1] + 1)) if compressed else None,
        )


@dataclass(frozen=True)
class SimpleRange:
    """The simple degradations training draws from."""

    scales: tuple[int, ...] = (1, 2, 3, 4)
    scale_weights: tuple[float, ...] = (0.1, 0.45, 0.1, 0.35)
    blur_chance: float = 0.25
    blur: tuple[float, float] = (0.3, 1.2)
    """Standard deviations in pixels of the clean image."""
    noise: tuple[float, float] = (0.0, 22.0)
    """Standard deviations in 8-bit levels."""
    clean_chance: float = 0.05
    """Chance of neither noise nor JPEG, so that clean inputs are part of training."""
    quality: tuple[int, int] = (45, 95)
    """JPEG qualities."""

    def draw(self, rng: np.random.Generator) -> SimpleDegradation:
        scale = draw_scale(rng, self.scales, self.scale_weights)
        clean = rng.random() < self.clean_chance
        return SimpleDegradation(
            scale=scale,
            blur_sigma=float(rng.uniform(*self.blur)) if rng.random() < self.blur_chance else 0.0,
            noise_sigma=0.0 if clean else float(rng.uniform(*self.noise)) / 255,
            jpeg_quality=None if clean else int(rng.integers(self.quality[0], self.quality[1] + 1)),
        )


@dataclass(frozen=True)
class RealWorldRange:
    """The second-order degradation at the scales training draws from."""

    scales: tuple[int, ...] = (2, 4)
    scale_weights: tuple[float, ...] = (0.25, 0.75)

    def draw(self, rng: np.random.Generator) -> RealWorldDegradation:
        return RealWorldDegradation(draw_scale(rng, self.scales, self.scale_weights))


@dataclass(frozen=True)
class DegradationMixture:
    """One of the three kinds for each window; a kind's chance is its weight over their sum."""

    weights: tuple[float, float, float] = (0.35, 0.4, 0.25)
    """Of camera, simple and real-world degradations."""
    camera: CameraRange = field(default_factory=CameraRange)
    simple: SimpleRange = field(default_factory=SimpleRange)
    real_world: RealWorldRange = field(default_factory=RealWorldRange)

    def draw(self, rng: np.random.Generator) -> Degrade:
        kinds = (self.camera, self.simple, self.real_world)
        chosen: Degradations = kinds[int(rng.choice(3, p=np.array(self.weights) / sum(self.weights)))]
        return chosen.draw(rng)
