"""Degradation of clean crops on the device, drawn from a mixture of kinds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...models.degradation.camera import CameraDegradation
from ...models.degradation.draws import happens, pick, uniform, uniforms, weighted_pick
from ...models.degradation.kernels import KernelOptions
from ...models.degradation.real_world import RealWorldDegradation, Round, random_resize
from ...models.degradation.simple import SimpleDegradation
from ...models.image import to_levels, upscale
from ..engine.draws import Draws
from .degradation_config import (
    CameraSettings,
    DegradationSettings,
    Enlarging,
    RealWorldSettings,
    RoundSettings,
    ScaledSettings,
    SimpleSettings,
)

LARGEST_SEED = 2**62


class Degradation(Protocol):
    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """`[B, 3, H, W]` in [0, 1] -> `[B, 3, h, w]` in 8-bit levels."""
        ...


class Degradations:
    """What training photos are degraded by.

    Every photo has a kind of its own, drawn by the weights. Each kind has a random generator of its own on the photos'
    device, so that noise is made there; a processor and a graphics card draw different numbers.
    """

    def __init__(self, settings: Sequence[DegradationSettings]):
        """Raises ValueError for settings that cannot work."""
        if not settings:
            raise ValueError("there is no degradation to draw from")
        self.settings = tuple(settings)
        for each in self.settings:
            draw_degradation(each, torch.Generator().manual_seed(0))

    def __call__(self, hq: Tensor, draws: Draws) -> Tensor:
        """Clean `[B, 3, H, W]` in [0, 1] -> degraded and brought back to that size, in 8-bit levels, on its device."""
        result = torch.empty_like(hq)
        for chosen, low, mode, generator in self.parts(hq, draws):
            result[chosen] = enlarge(low, (hq.shape[-2], hq.shape[-1]), mode, generator)
        return result

    def low(self, hq: Tensor, draws: Draws) -> Tensor:
        """The small images `[B, 3, h, w]` that a call with draws in the same state brings back to size.

        Raises ValueError where photos of a batch are degraded to different sizes.
        """
        found: dict[int, Tensor] = {}
        for chosen, low, _, _ in self.parts(hq, draws):
            found.update(zip(chosen, low, strict=True))
        if len({image.shape for image in found.values()}) > 1:
            raise ValueError("the kinds of degradation have different scales: their small images are no batch")
        return torch.stack([found[index] for index in range(len(found))])

    def parts(self, hq: Tensor, draws: Draws) -> Iterator[tuple[list[int], Tensor, Enlarging, torch.Generator]]:
        """Photos that are degraded together: their places in the batch, small images, and how these are enlarged."""
        kinds = self.draw_kinds(hq.shape[0], draws)
        for number, settings in enumerate(self.settings):
            seed = int(torch.randint(LARGEST_SEED, (), generator=draws.generator))
            generator = torch.Generator(hq.device).manual_seed(seed)
            chosen = [index for index, kind in enumerate(kinds) if kind == number]
            together = isinstance(settings, RealWorldSettings) and settings.shared
            for part in [chosen] if together and chosen else [[index] for index in chosen]:
                degradation = draw_degradation(settings, generator)
                yield part, degradation(hq[part], generator), settings.upscale, generator

    def draw_kinds(self, count: int, draws: Draws) -> list[int]:
        """Which of the settings each photo is degraded by."""
        if len(self.settings) == 1:
            return [0] * count
        weights = torch.tensor([each.weight for each in self.settings])
        return torch.multinomial(weights, count, replacement=True, generator=draws.generator).tolist()


def enlarge(low: Tensor, size: tuple[int, int], mode: Enlarging, generator: torch.Generator) -> Tensor:
    """Small images `[B, 3, h, w]` brought to (height, width), in 8-bit levels."""
    if mode == "random":
        return to_levels(random_resize(low, size, generator))
    return upscale(low.movedim(1, -1), size[1], size[0]).movedim(-1, 1)


def draw_degradation(settings: DegradationSettings, generator: torch.Generator) -> Degradation:
    """A degradation with the numbers that are drawn before it runs."""
    if isinstance(settings, RealWorldSettings):
        return real_world(settings, draw_scale(settings, generator))
    if isinstance(settings, SimpleSettings):
        return draw_simple(settings, generator)
    return draw_camera(settings, generator)


def draw_scale(settings: ScaledSettings, generator: torch.Generator) -> float:
    return settings.scales[weighted_pick(generator, settings.scale_weights)]


def real_world(settings: RealWorldSettings, scale: float) -> RealWorldDegradation:
    """Draws everything but the scale itself, when it runs."""
    rounds = (settings.first,) if settings.second is None else (settings.first, settings.second)
    return RealWorldDegradation(
        scale=scale,
        rounds=tuple(map(make_round, rounds)),
        sinc_chance=settings.final_sinc_chance,
        jpeg_last_chance=settings.jpeg_last_chance,
    )


def make_round(settings: RoundSettings) -> Round:
    low, high = settings.gaussian
    return Round(
        kernel=KernelOptions(
            sigma=settings.sigma,
            sinc_chance=settings.sinc_chance,
            weights=settings.kernel_weights,
            beta_generalized=settings.beta_generalized,
            beta_plateau=settings.beta_plateau,
            sizes=settings.kernel_sizes,
        ),
        blur_chance=settings.blur_chance,
        resize_weights=settings.resize_weights,
        enlarge=settings.enlarge,
        shrink=settings.shrink,
        gaussian_sigma=(low / 255, high / 255),
        poisson_scale=settings.poisson,
        gaussian_chance=settings.gaussian_chance,
        grey_chance=settings.grey_chance,
        jpeg_quality=settings.quality,
    )


def draw_simple(settings: SimpleSettings, generator: torch.Generator) -> SimpleDegradation:
    clean = happens(generator, settings.clean_chance)
    return SimpleDegradation(
        scale=draw_scale(settings, generator),
        blur_sigma=uniform(generator, settings.blur) if happens(generator, settings.blur_chance) else 0.0,
        noise_sigma=0.0 if clean else uniform(generator, settings.noise) / 255,
        jpeg_quality=None if clean else draw_quality(settings.quality, generator),
    )


def draw_camera(settings: CameraSettings, generator: torch.Generator) -> CameraDegradation:
    scale = draw_scale(settings, generator)
    along, across = (scale * sigma for sigma in uniforms(generator, settings.sigma, 2).tolist())
    compressed = happens(generator, settings.jpeg_chance)
    return CameraDegradation(
        scale=scale,
        sigma=(along, along if happens(generator, settings.round_chance) else across),
        rotation=uniform(generator, (0.0, math.pi)),
        noise_sigma=uniform(generator, settings.noise) / 255,
        jpeg_quality=draw_quality(settings.quality, generator) if compressed else None,
    )


def draw_quality(bounds: tuple[int, int], generator: torch.Generator) -> int:
    low, high = bounds
    return low + pick(generator, high - low + 1)
