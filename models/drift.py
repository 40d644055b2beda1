"""Drift of meaning: does a restoration still show what its low-quality image shows? Ours: no paper states it.

A no-reference score rewards a picture that looks good, also where it was made up. What the low-quality image is right
about is its low frequencies and its edges at its own resolution; both are compared there, window by window, and the
worst window counts: a face in another place leaves most of the picture as it was.

What the low-quality image does not resolve, such as small text, cannot drift here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .image import gaussian_blur
from .tile_check.measures import LEVELS, luma

SIGMA = 1.5
"""Low-pass in pixels of the low-quality image: takes off its noise."""

WINDOWS = 8
"""Windows along the shorter side; neighbours overlap by half."""

LEAST_WINDOW = 8
"""Pixels of the low-quality image."""

LOW_FLOOR = 12.0
"""Levels of 255 that low frequencies may differ by anywhere: noise, and tones."""

EDGE_FLOOR = 3.0
"""Levels a pixel that gradients may differ by anywhere."""


@dataclass(frozen=True)
class Drift:
    """How far a result is from its low-quality image in the worst window. 0: it says the same."""

    low: float
    """Of the low frequencies, in parts of the low-quality image's own: about 1 where something else is shown."""
    edges: float
    """Of the edges, in parts of both images': about 1 where they have nothing to do with each other."""

    @property
    def value(self) -> float:
        """The larger of the two."""
        return max(self.low, self.edges)


def measure_drift(result: Tensor, lq: Tensor) -> Drift:
    """Drift of a result `[H, W, 3]` from its low-quality image `[h, w, 3]`, both 0..1 and of one aspect ratio.

    An even tint or change of brightness is none. A result with values that are not numbers drifts without bound.
    """
    if not result.isfinite().all():
        return Drift(math.inf, math.inf)
    model = lq.movedim(-1, 0)[None].float() * LEVELS
    small = F.interpolate(
        result.movedim(-1, 0)[None].float() * LEVELS, model.shape[-2:], mode="bicubic", antialias=True
    )
    pair = gaussian_blur(torch.cat([small, model]), SIGMA, math.ceil(3 * SIGMA))
    pair = pair - pair.mean(dim=(-1, -2), keepdim=True)
    side = min(max(min(pair.shape[-2:]) // WINDOWS, LEAST_WINDOW), *pair.shape[-2:])
    return Drift(worst(low_difference(pair, side)), worst(edge_difference(pair, side)))


def windows(values: Tensor, side: int) -> Tensor:
    """Means `[n, m]` over square windows of `[C, H, W]`, channels too."""
    return F.avg_pool2d(values.mean(dim=0)[None, None], side, max(side // 2, 1))[0, 0]


def low_difference(pair: Tensor, side: int) -> Tensor:
    """Per window: rms of what differs in parts of the low-quality image's standard deviation there."""
    result, model = pair
    local = windows(model.square(), side) - sum(windows(channel[None], side).square() for channel in model) / len(model)
    return (windows((result - model).square(), side) / (local.clamp(min=0) + LOW_FLOOR**2)).sqrt()


def edge_difference(pair: Tensor, side: int) -> Tensor:
    """Per window: rms of the difference of gradients in parts of the two gradients' own; 1 for unrelated ones."""
    result, model = (torch.cat(gradients(luma(image))) for image in pair)
    own = windows(result.square(), side) + windows(model.square(), side)
    return (windows((result - model).square(), side) / (own + EDGE_FLOOR**2)).sqrt()


def gradients(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of `[1, H, W]` down and across, borders repeated."""
    padded = F.pad(grey[None], (1, 1, 1, 1), mode="replicate")[0]
    return (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2, (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2


def worst(values: Tensor) -> float:
    return float(values.max())


def vetoed(drifts: Sequence[float], limit: float) -> list[bool]:
    """Which candidates drift too far: those above `limit`, but never all; 0 or less vetoes none.

    Where all are above it, all but the least drifted are vetoed.
    """
    if limit <= 0 or not drifts:
        return [False] * len(drifts)
    out = [not drift <= limit for drift in drifts]
    if all(out):
        least = min(range(len(drifts)), key=lambda index: (math.isnan(drifts[index]), drifts[index]))
        out[least] = False
    return out


def kept_candidates(drifts: Sequence[float], images: int, limit: float) -> list[int]:
    """Numbers of the candidates that are handed on, of which there is one round by round for each image.

    Those vetoed are left out. Of several images each has to keep as many candidates as the others: there the image's
    least drifted one takes the place of a vetoed one.
    """
    kept = list(range(len(drifts)))
    for image in range(images):
        own = kept[image::images]
        values = [drifts[index] for index in range(image, len(drifts), images)]
        best = own[min(range(len(values)), key=values.__getitem__)]
        out = vetoed(values, limit)
        kept[image::images] = [best if veto else index for index, veto in zip(own, out, strict=True)]
    if images > 1:
        return kept
    return [index for index, veto in enumerate(vetoed(drifts, limit)) if not veto]


def told_drifts(drifts: Sequence[float], images: int, limit: float) -> list[str]:
    """A line for each candidate, listed in the same way."""
    notes = [f"Drift: {drift:.2f}" for drift in drifts]
    for image in range(images):
        for number, veto in enumerate(vetoed(drifts[image::images], limit)):
            if veto:
                notes[image + number * images] += f", above {limit:g}: passed over"
    return notes
