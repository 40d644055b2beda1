"""The straight path from an image to noise, which every flow-matching loss here runs along."""

from __future__ import annotations

from torch import Tensor


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Per-sample values `[B]` (or a scalar) shaped to broadcast over `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def noisy(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t noise, for `time` `[B]`: 0 is the image, 1 is noise."""
    t = expand(time, clean)
    return (1 - t) * clean + t * noise
