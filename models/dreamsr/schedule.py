"""Times of DreamSR's two stages, in [0, 1]: 1 is noise, 0 the image (arXiv 2605.15682)."""

from __future__ import annotations

import torch
from torch import Tensor

REMOVAL_TIME = 1.0
"""t_s: the time both networks are told in the single degradation-removal forward. The paper states none: our choice."""

TEXTURE_START = 0.8
"""t of eq. 3: z_t = (1 - t) z_dr + t noise, where the texture stage begins."""

TEXTURE_STEPS = 16


def texture_sigmas(steps: int = TEXTURE_STEPS, start: float = TEXTURE_START, shift: float = 1.0) -> Tensor:
    """The texture stage's sigmas, `[steps + 1]` float32, from `start` to exactly 0; their spacing is our choice.

    shift: how much more steps lie at high sigmas, sigma = shift u / (1 + (shift - 1) u) of uniform u; 1 is uniform,
    sigma_k = start (1 - k / steps). FLUX's own schedules have a shift of e^mu, 1.65 to 3.16.

    Raises ValueError when steps < 1, start is outside (0, 1], or shift is not positive.
    """
    if steps < 1 or not 0 < start <= 1 or shift <= 0:
        raise ValueError(
            f"A texture schedule needs at least 1 step, a start in (0, 1] and a positive shift; "
            f"got {steps} steps, start {start}, shift {shift}."
        )
    uniform = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    if shift == 1:
        return (start * uniform).float()
    unshifted_start = start / (shift - (shift - 1) * start)
    u = unshifted_start * uniform
    sigmas = shift * u / (1 + (shift - 1) * u)
    sigmas[0] = start
    return sigmas.float()
