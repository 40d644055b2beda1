"""Random numbers for sampling: streams of their own for every image and every purpose.

So an image's tokens depend on its seed alone, not on its place in a batch, on the length of a neighbour's text or on
whether anyone watches. They come from the CPU's generator, which is the same everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Draws(Protocol):
    """Uniform numbers in 0..1, float64 `[images, count]` on the CPU; each call continues the stream."""

    def take(self, stream: str, count: int) -> Tensor: ...

    def select(self, images: Sequence[int]) -> Draws:
        """The same streams for some of the images."""
        ...


class SeededDraws:
    """`Draws` from one seed per image."""

    def __init__(self, seeds: Sequence[int]):
        self.seeds = list(seeds)
        self.generators: dict[tuple[int, str], torch.Generator] = {}

    def generator(self, image: int, stream: str) -> torch.Generator:
        if (image, stream) not in self.generators:
            digest = hashlib.sha256(f"{self.seeds[image]}/{stream}".encode()).digest()
            self.generators[image, stream] = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return self.generators[image, stream]

    def take(self, stream: str, count: int) -> Tensor:
        rows = [
            torch.rand(count, generator=self.generator(image, stream), dtype=torch.float64)
            for image in range(len(self.seeds))
        ]
        return torch.stack(rows)

    def select(self, images: Sequence[int]) -> SeededDraws:
        chosen = SeededDraws([self.seeds[image] for image in images])
        chosen.generators = {
            (new, stream): generator
            for (image, stream), generator in self.generators.items()
            for new, old in enumerate(images)
            if old == image
        }
        return chosen


def uniforms_on(device: torch.device, uniforms: Tensor) -> Tensor:
    """Uniform numbers moved to a device, in float32 where it has no float64."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return uniforms.to(device=device, dtype=dtype, non_blocking=True)
