"""Scalar random draws from a torch.Generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Range = tuple[float, float]


def uniform(generator: torch.Generator, bounds: Range) -> float:
    """A number from U(low, high)."""
    low, high = bounds
    return low + (high - low) * torch.rand((), generator=generator, device=generator.device).item()


def uniforms(generator: torch.Generator, bounds: Range, count: int) -> torch.Tensor:
    """`[count]` numbers from U(low, high), on the generator's device."""
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def happens(generator: torch.Generator, chance: float) -> bool:
    return uniform(generator, (0.0, 1.0)) < chance


def pick(generator: torch.Generator, count: int) -> int:
    """An index below `count`, all alike."""
    return int(torch.randint(count, (), generator=generator, device=generator.device))


def weighted_pick(generator: torch.Generator, weights: Sequence[float]) -> int:
    """An index, drawn in proportion to the weights."""
    table = torch.tensor(weights, dtype=torch.float32, device=generator.device)
    return int(torch.multinomial(table, 1, generator=generator))
