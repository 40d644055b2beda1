"""What VICR and DreamSR do with a FLUX, written out in float64 on `straight_line_flux`: conditions of a diptych, Euler
steps, predictions of tiles merged, degradation removal. Latents are model space. Nothing of the pack or the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

LATENT_SCALE, LATENT_SHIFT = 0.3611, 0.1159

Box = Sequence[int]
"""y0, y1, x0, x1 in latent cells."""

Velocity = Callable[[Tensor, Tensor], Tensor]


def model_space(raw: Tensor) -> Tensor:
    return (raw.double() - LATENT_SHIFT) * LATENT_SCALE


def raw_space(latent: Tensor) -> Tensor:
    return latent / LATENT_SCALE + LATENT_SHIFT


def fill_channels(encoded: Tensor) -> Tensor:
    """FLUX Fill's 16 + 64 further channels for a diptych whose right panel is to be generated; `encoded` is raw."""
    batch, _, height, width = encoded.shape
    mask = torch.zeros(batch, 64, height, width, dtype=torch.float64)
    mask[..., width // 2 :] = 1
    return torch.cat([model_space(encoded), mask], dim=1)


def euler(velocity: Velocity, start: Tensor, sigmas: Tensor) -> Tensor:
    """sigmas: float32, the last one 0."""
    x = start.double()
    for now, after in pairwise(sigmas):
        x = x + (after.double() - now.double()) * velocity(x, now)
    return x


def shifted_sigmas(steps: int, tokens: int) -> Tensor:
    """FLUX's dynamic shift: mu is 0.5 at 256 tokens, 1.15 at 4096 and linear in between and beyond."""
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    levels = [math.exp(mu) / (math.exp(mu) + steps / (steps - k) - 1) for k in range(steps)]
    return torch.tensor([*levels, 0.0], dtype=torch.float32)


def crop(x: Tensor, box: Box) -> Tensor:
    top, bottom, left, right = box
    return x[..., top:bottom, left:right]


def diptych_crop(x: Tensor, box: Box) -> Tensor:
    """The same box of both panels, side by side."""
    return torch.cat([crop(panel, box) for panel in x.chunk(2, dim=-1)], dim=-1)


def weight(kind: str, height: int, width: int) -> Tensor:
    if kind == "uniform":
        return torch.ones(height, width, dtype=torch.float64)
    assert kind == "gaussian", kind
    rows, columns = (
        torch.exp(-((((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / n) / 0.3) ** 2) / 2)
        for n in (height, width)
    )
    return rows[:, None] * columns


def merged(size: Sequence[int], tiles: Tensor, boxes: Sequence[Box], kind: str) -> Tensor:
    """Weighted mean of predictions `[tiles, C, h, w]`, as `[1, C, *size]`."""
    total = torch.zeros(1, tiles.shape[1], *size, dtype=torch.float64)
    weights = torch.zeros(*size, dtype=torch.float64)
    bell = weight(kind, *tiles.shape[-2:])
    for tile, box in zip(tiles, boxes, strict=True):
        crop(total, box).add_(tile * bell)
        crop(weights, box).add_(bell)
    return total / weights


def merged_diptychs(size: Sequence[int], tiles: Tensor, boxes: Sequence[Box], kind: str) -> Tensor:
    """Each panel merged by itself; `size` is a panel's."""
    return torch.cat([merged(size, half, boxes, kind) for half in tiles.chunk(2, dim=-1)], dim=-1)


def removed(velocity: Velocity, latent: Tensor, time: float) -> Tensor:
    """z - t v(z, t): one forward."""
    return latent.double() - time * velocity(latent.double(), torch.tensor(time))
