"""PSNR and SSIM between a restored image and its reference, in float64 and as super-resolution papers compute them.

Both follow pyiqa (`psnr` and `ssim` with `color_space="ycbcr"`, `psnr` and `ssimc` on RGB), which most papers on
real-world super-resolution report, and need neither pyiqa nor a weight file. Luma is that of ITU-R BT.601 in studio
range, 16 to 235 of 255, as MATLAB's rgb2ycbcr and BasicSR have it: an error of full range would cost
20 log10(255 / 219) = 1.32 dB of PSNR.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Channel = Literal["y", "rgb"]

PSNR_EPS = 1e-8
"""Added to the squared error, as in pyiqa: equal images have 80 dB, not infinitely many."""
WINDOW = 11
"""Side of SSIM's Gaussian window in pixels; its sigma is 1.5 (Wang et al. 2004)."""
SIGMA = 1.5


def luma(images: Tensor) -> Tensor:
    """Y of BT.601's YCbCr: RGB `[B, 3, H, W]` in 0..1 -> `[B, 1, H, W]` in 16/255..235/255, float64."""
    red, green, blue = images.double().unbind(1)
    return ((65.481 * red + 128.553 * green + 24.966 * blue + 16) / 255).unsqueeze(1)


def compared(images: Tensor, channel: Channel, crop_border: int) -> Tensor:
    """What is compared of RGB images `[B, 3, H, W]` in 0..1: `[B, 1 or 3, H - 2c, W - 2c]` in float64."""
    if crop_border:
        images = images[..., crop_border:-crop_border, crop_border:-crop_border]
    return luma(images) if channel == "y" else images.double()


def check_pair(images: Tensor, references: Tensor, smallest: int) -> None:
    """Raises ValueError unless both are `[B, 3, H, W]` of one size, `smallest` pixels at least on each side."""
    if images.shape != references.shape or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"Expected two RGB batches of one shape, got {list(images.shape)} and {list(references.shape)}."
        )
    if min(images.shape[-2:]) < smallest:
        height, width = images.shape[-2:]
        raise ValueError(f"An image of {width} x {height} pixels is too small: {smallest} are needed on each side.")


def psnr(images: Tensor, references: Tensor, channel: Channel = "y", crop_border: int = 0) -> Tensor:
    """Peak signal-to-noise ratio in dB, `[B]` in float64, of RGB `[B, 3, H, W]` in 0..1; higher is better.

    The peak is 1 on the luma of studio range too. Raises ValueError for other shapes.
    """
    check_pair(images, references, 2 * crop_border + 1)
    difference = compared(images, channel, crop_border) - compared(references, channel, crop_border)
    return -10 * torch.log10(difference.square().mean(dim=(1, 2, 3)) + PSNR_EPS)


def ssim(images: Tensor, references: Tensor, channel: Channel = "y", crop_border: int = 0) -> Tensor:
    """Structural similarity (Wang et al. 2004), `[B]` in float64, of RGB `[B, 3, H, W]` in 0..1; higher is better.

    An 11 x 11 Gaussian window, where it fits into the image; values rounded to 8 bits, as MATLAB has them; negative
    contrast-structure terms count as 0, as in pyiqa. RGB: the mean of the channels. Raises ValueError for other shapes.
    """
    check_pair(images, references, 2 * crop_border + WINDOW)
    x, y = ((compared(each, channel, crop_border) * 255).round() for each in (images, references))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = smooth(x), smooth(y)
    variance_x, variance_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    contrast_structure = ((2 * covariance + c2) / (variance_x + variance_y + c2)).clamp(min=0)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * contrast_structure).mean(dim=(1, 2, 3))


def smooth(images: Tensor) -> Tensor:
    """Means under the Gaussian window, `[B, C, H, W]` -> `[B, C, H - 10, W - 10]`."""
    position = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.exp(-position.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    planes = images.flatten(0, 1).unsqueeze(1)
    rows = F.conv2d(planes, weights.view(1, 1, WINDOW, 1))
    return F.conv2d(rows, weights.view(1, 1, 1, WINDOW)).unflatten(0, images.shape[:2]).squeeze(2)
