"""Blur kernels of the Real-ESRGAN degradation (arXiv 2107.10833): Gaussian, generalised, plateau and sinc.

Our own: kornia and torchvision make plain Gaussians only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..image import mirror_borders
from .draws import Range, happens, pick, uniform, weighted_pick

KERNEL_KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
KERNEL_SIDE = 21
SMALL_KERNEL = 13


@dataclass(frozen=True)
class KernelOptions:
    """What blur kernels are drawn from."""

    sigma: Range = (0.2, 3.0)
    """Standard deviations in pixels, per axis for the anisotropic kinds."""
    sinc_chance: float = 0.1
    """Chance of an ideal low-pass kernel (ringing) instead of a blur."""
    weights: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """Chances of KERNEL_KINDS."""
    beta_generalized: Range = (0.5, 4.0)
    """Shape exponents of the generalised kinds."""
    beta_plateau: Range = (1.0, 2.0)
    """Shape exponents of the plateau kinds."""
    sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    """Sides in pixels, all alike."""


def draw_kernel(options: KernelOptions, generator: torch.Generator) -> Tensor:
    """A kernel `[21, 21]` that sums to one, smaller sizes centred in zeros."""
    size = options.sizes[pick(generator, len(options.sizes))]
    if happens(generator, options.sinc_chance):
        lowest = math.pi / 3 if size < SMALL_KERNEL else math.pi / 5
        return pad_kernel(sinc_kernel(uniform(generator, (lowest, math.pi)), size))
    kind = KERNEL_KINDS[weighted_pick(generator, options.weights)]
    sigma_x = uniform(generator, options.sigma)
    anisotropic = not kind.endswith("_iso") and kind != "iso"
    sigma_y = uniform(generator, options.sigma) if anisotropic else sigma_x
    rotation = uniform(generator, (-math.pi, math.pi)) if anisotropic else 0.0
    distance = squared_distance(size, sigma_x, sigma_y, rotation)
    if kind.startswith("plateau"):
        kernel = 1 / (distance ** uniform(generator, options.beta_plateau) + 1)
    elif kind.startswith("generalized"):
        kernel = torch.exp(-0.5 * distance ** uniform(generator, options.beta_generalized))
    else:
        kernel = torch.exp(-0.5 * distance)
    return pad_kernel(kernel / kernel.sum())


def draw_final_sinc(generator: torch.Generator, sizes: tuple[int, ...], chance: float) -> Tensor:
    """The closing low-pass kernel `[21, 21]`; the identity when it is not drawn."""
    if not happens(generator, chance):
        return pad_kernel(torch.ones(1, 1))
    size = sizes[pick(generator, len(sizes))]
    return pad_kernel(sinc_kernel(uniform(generator, (math.pi / 3, math.pi)), size))


def squared_distance(size: int, sigma_x: float, sigma_y: float, rotation: float) -> Tensor:
    """Mahalanobis distance from the centre, squared, `[size, size]`; the x axis is turned by `rotation`."""
    offsets = torch.arange(size, dtype=torch.float32) - size // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    along = (x * math.cos(rotation) + y * math.sin(rotation)) / sigma_x
    across = (y * math.cos(rotation) - x * math.sin(rotation)) / sigma_y
    return along**2 + across**2


def sinc_kernel(cutoff: float, size: int) -> Tensor:
    """Circular ideal low-pass filter `[size, size]`; cutoff in radians per pixel, up to pi. Sums to one."""
    offsets = torch.arange(size, dtype=torch.float32) - size // 2
    radius = torch.hypot(offsets[:, None], offsets[None])
    safe = radius.clamp(min=1e-6)
    kernel = cutoff * torch.special.bessel_j1(cutoff * safe) / (2 * math.pi * safe)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return kernel / kernel.sum()


def pad_kernel(kernel: Tensor) -> Tensor:
    """The kernel centred in `[21, 21]` zeros."""
    margin = (KERNEL_SIDE - kernel.shape[-1]) // 2
    return F.pad(kernel, (margin,) * 4)


def filter_image(image: Tensor, kernel: Tensor) -> Tensor:
    """Filter each channel of `[B, C, H, W]` with one odd-sided kernel; borders are mirrored."""
    channels = image.shape[1]
    weight = kernel.to(image).expand(channels, 1, *kernel.shape)
    return F.conv2d(mirror_borders(image, kernel.shape[-1] // 2), weight, groups=channels)
