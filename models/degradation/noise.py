"""Gaussian and Poisson noise in colour or grey. Our own: kornia and torchvision have no Poisson noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..image import to_levels

LUMA = (0.2989, 0.5870, 0.1140)


def gaussian_noise(image: Tensor, sigma: Tensor, grey: Tensor, generator: torch.Generator) -> Tensor:
    """Noise for `[B, 3, H, W]` in [0, 1] of standard deviations sigma `[B]`; equal in all channels where grey `[B]`."""
    color = standard_normal(image.shape, image, generator)
    shared = standard_normal((image.shape[0], 1, *image.shape[-2:]), image, generator)
    return torch.where(per_image(grey, image), shared, color) * per_image(sigma, image)


def poisson_noise(image: Tensor, scale: Tensor, grey: Tensor, generator: torch.Generator) -> Tensor:
    """Shot noise for `[B, 3, H, W]` in [0, 1], strengthened by scale `[B]`; from the luma where grey `[B]`.

    An image of n distinct levels counts as exposed to the next power of two of n photons at full scale.
    """
    levels = to_levels(image)
    luma = (levels * torch.tensor(LUMA).to(levels).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    noise = torch.where(per_image(grey, image), shot(to_levels(luma), generator), shot(levels, generator))
    return noise * per_image(scale, image)


def shot(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Poisson counts minus their mean, in parts of full scale."""
    photons = torch.tensor([float(1 << (image.unique().numel() - 1).bit_length()) for image in levels])
    photons = photons.to(levels).view(-1, 1, 1, 1)
    expected = (levels * photons).to(generator.device)
    counts = torch.poisson(expected, generator=generator).to(levels.device)
    return counts / photons - levels


def standard_normal(shape, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(like)


def per_image(values: Tensor, image: Tensor) -> Tensor:
    """`[B]` -> `[B, 1, 1, 1]` on the image's device."""
    return values.to(image.device).view(-1, 1, 1, 1)
