"""A colour scale for maps of numbers: dark blue over red to light yellow, each step lighter by as much as it looks.

Colours are interpolated in OKLab, whose lightness is the perceived one, so that equal steps of the number look equal
and the map still reads in grey or with colour-blind eyes. Our own because matplotlib, which has such scales, is not
among what the host brings.
"""

from __future__ import annotations

import torch
from torch import Tensor

LIGHTNESS = (0.16, 0.97)
# OKLab (a, b) at equal distances along the scale: indigo, violet, red, orange, yellow, pale yellow.
CHROMA = ((0.01, -0.10), (0.11, -0.12), (0.18, 0.03), (0.12, 0.13), (0.02, 0.16), (-0.02, 0.09))

LAB_TO_LMS = (
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
LMS_TO_RGB = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)


def oklab_to_srgb(lab: Tensor) -> Tensor:
    """OKLab `[..., 3]` -> sRGB in 0..1, clipped to what a screen shows."""
    lms = (lab @ lab.new_tensor(LAB_TO_LMS).T) ** 3
    linear = (lms @ lab.new_tensor(LMS_TO_RGB).T).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-12) ** (1 / 2.4) - 0.055)


def heat(values: Tensor) -> Tensor:
    """Colours `[..., 3]` in 0..1 of values in 0..1, any shape; values outside are clamped."""
    values = values.float().clamp(0, 1)
    stops = values.new_tensor(CHROMA)
    place = values * (len(CHROMA) - 1)
    low = place.floor().long().clamp(max=len(CHROMA) - 2)
    share = (place - low)[..., None]
    chroma = stops[low] * (1 - share) + stops[low + 1] * share
    lightness = LIGHTNESS[0] + (LIGHTNESS[1] - LIGHTNESS[0]) * values
    return oklab_to_srgb(torch.cat([lightness[..., None], chroma], dim=-1))
