"""Training objectives of DreamSR (arXiv 2605.15682, eq. 4-7).

Every random number is an argument, so that a loss can be checked against fixed draws. Errors are given per sample,
`[B]`, so that terms which hold for some samples only keep their place in the mean. Latents `[B, C, H, W]` are in the
model's space, images `[B, 3, H, W]` in [-1, 1], times `[B]` in [0, 1] with 1 for noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..flow import expand


def clean_estimate(z_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The clean latent that a velocity at time t implies: z_t - t v."""
    return z_t - expand(t, z_t) * velocity


def squared_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of each sample, `[B]` in float32."""
    return (found.float() - wanted.float()).square().flatten(1).mean(dim=1)


def velocity_error(velocity: Tensor, hq: Tensor, noise: Tensor) -> Tensor:
    """Eq. 4: squared error of the velocity against noise - z_0, `[B]`."""
    return squared_error(velocity, noise - hq)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises, of its scores (any shape) for real and restored images."""
    return F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()


def generator_error(fake: Tensor) -> Tensor:
    """What the restorer minimises of the discriminator's scores for its images, `[B]`."""
    return -fake.float().flatten(1).mean(dim=1)


def samples_below(t: Tensor, limit: float) -> Tensor:
    """Numbers `[n]` of the samples whose time is below `limit`.

    Where times have no values (an estimate's), all of them: the most that a step can need.
    """
    if t.is_meta or isinstance(t, FakeTensor):
        return torch.arange(t.shape[0], device=t.device)
    return torch.nonzero(t < limit).flatten()
