"""8-bit levels, resampling as Pillow does it, borders and blur of float images.

The reference pipelines upscale 8-bit images with Pillow, whose bicubic (a = -0.5, antialiased when shrinking)
differs from torch's (a = -0.75) by up to 7/255, which a one-step model amplifies. So images go through Pillow
itself: rounded to 8 bits, resized, back to float. An 8-bit source loses nothing by that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Around = tuple[bool, bool]
"""Whether a picture goes on at its other side: over its top and bottom, over its left and right."""

NOT_AROUND: Around = (False, False)

Told = Callable[[float], None]
"""Told how much of a piece of work is done, in 0..1."""


def untold(done: float) -> None:
    """Nobody wants to know."""


STRIP_ROWS = 256
FILTER_REACH = 3
"""Pixels on either side that Pillow's widest filter, Lanczos, takes in."""

BICUBIC = Image.Resampling.BICUBIC
LANCZOS = Image.Resampling.LANCZOS
BOX = Image.Resampling.BOX


def strips(height: int) -> Iterator[slice]:
    """Rows of an image, STRIP_ROWS at a time: what makes no copy of a large one works on these."""
    for top in range(0, height, STRIP_ROWS):
        yield slice(top, min(top + STRIP_ROWS, height))


def extremes(values: Tensor) -> tuple[float, float]:
    """Least and largest of `[B, H, ...]`, NaN where any is no number.

    torch.aminmax copies what is not contiguous; this works in strips of H.
    """
    ends = torch.stack([torch.stack(torch.aminmax(values[:, rows])) for rows in strips(values.shape[1])])
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def to_bytes(images: Tensor) -> Tensor:
    """Images in 0..1, any shape -> nearest 8-bit levels; values outside are clamped."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def truncate_to_bytes(images: Tensor) -> Tensor:
    """Images in 0..1, any shape -> 8-bit levels, rounded down as when ComfyUI and the reference save an image."""
    return (images.clamp(0, 1) * 255).to(torch.uint8)


def from_bytes(images: Tensor) -> Tensor:
    """8-bit images, any shape -> float32 in 0..1."""
    return images.float() / 255


def to_levels(images: Tensor) -> Tensor:
    """Images in 0..1, any shape -> the same as floats of the nearest 8-bit levels; values outside are clamped."""
    return (images.clamp(0, 1) * 255).round() / 255


def resize_bytes(image: Tensor, width: int, height: int, resample: Image.Resampling) -> Tensor:
    """Resize one 8-bit image `[H, W, C]` on the CPU; every channel alike, alpha included."""
    out = torch.empty((height, width, image.shape[-1]), dtype=torch.uint8)
    for rows, channels, levels in resized_strips(image, width, height, resample):
        out[rows, :, channels] = levels
    return out


def resized_strips(
    image: Tensor, width: int, height: int, resample: Image.Resampling, around: Around = NOT_AROUND
) -> Iterator[tuple[slice, slice, Tensor]]:
    """One 8-bit image `[H, W, C]` on the CPU, resized: (rows, channels, `[rows, width, channels]`) by and by."""
    box = None
    if any(around):
        # What the filter reaches beyond the edges; the box is the image itself.
        reach = [
            math.ceil(FILTER_REACH * max(1.0, old / new)) + 1 if goes_on else 0
            for goes_on, old, new in zip(around, image.shape, (height, width), strict=False)
        ]
        box = (reach[1], reach[0], reach[1] + image.shape[1], reach[0] + image.shape[0])
        for dim, beyond in enumerate(reach):
            image = image.index_select(dim, torch.arange(-beyond, image.shape[dim] + beyond) % image.shape[dim])
    array = image.numpy()
    if array.shape[-1] == 3:
        parts = [(slice(0, 3), array)]
    else:
        parts = [(slice(band, band + 1), array[..., band]) for band in range(array.shape[-1])]
    for channels, part in parts:
        resized = Image.fromarray(np.ascontiguousarray(part)).resize((width, height), resample, box)
        for rows in strips(height):
            strip = np.array(resized.crop((0, rows.start, width, rows.stop)))
            yield rows, channels, torch.from_numpy(strip).view(rows.stop - rows.start, width, -1)


def resize(
    images: Tensor,
    width: int,
    height: int,
    resample: Image.Resampling = BICUBIC,
    around: Around = NOT_AROUND,
    told: Told = untold,
) -> Tensor:
    """Resize images `[B, H, W, C]` in 0..1 to `[B, height, width, C]` of 8-bit levels, on the images' device.

    around: over which edges, (down, across), a picture goes on at its other side. told: how much of the result is
    written. Images already of that size are returned as they are. Raises ValueError for a size below 1.
    """
    if width < 1 or height < 1:
        raise ValueError(f"cannot resize to {width}x{height}: both sides must be at least 1 pixel")
    if images.shape[1:3] == (height, width):
        return images
    out = torch.empty((images.shape[0], height, width, images.shape[-1]), dtype=images.dtype, device=images.device)
    written = 0
    for source, target in zip(images, out, strict=True):
        levels = torch.cat([to_bytes(source[rows]).cpu() for rows in strips(source.shape[0])])
        for rows, channels, strip in resized_strips(levels, width, height, resample, around):
            target[rows, :, channels] = from_bytes(strip).to(target)
            written += strip.numel()
            told(written / out.numel())
    return out


def upscale(images: Tensor, width: int, height: int, around: Around = NOT_AROUND, told: Told = untold) -> Tensor:
    """Bicubic `resize`, alpha included: the low-quality image a restoration network is given."""
    return resize(images, width, height, BICUBIC, around, told)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeat the right and bottom border of `[B, H, W, C]` until both sides are multiples."""
    bottom, right = -image.shape[1] % multiple, -image.shape[2] % multiple
    if not (bottom or right):
        return image
    padded = F.pad(image.movedim(-1, 1), (0, right, 0, bottom), mode="replicate")
    return padded.movedim(1, -1)


def reflect_indices(length: int, radius: int) -> Tensor:
    """Indices 0..length-1 continued by `radius` on both sides as in `d c b a b c d c b`, for any length."""
    if length == 1:
        return torch.zeros(1 + 2 * radius, dtype=torch.long)
    period = 2 * (length - 1)
    phase = torch.arange(-radius, length + radius) % period
    return torch.minimum(phase, period - phase)


def border_indices(length: int, radius: int, around: bool) -> Tensor:
    """The same, or where a side goes on at its other end, as in `c d a b c d a b`."""
    return torch.arange(-radius, length + radius) % length if around else reflect_indices(length, radius)


def mirror_borders(images: Tensor, radius: int) -> Tensor:
    """`[B, C, H, W]` with `radius` more pixels on every side, as in `reflect_indices`.

    F.pad's `reflect` does the same, but refuses sides that are not longer than the radius.
    """
    rows, columns = (reflect_indices(side, radius).to(images.device) for side in images.shape[-2:])
    return images.index_select(2, rows).index_select(3, columns)


def gaussian_kernel(sigma: float, radius: int) -> Tensor:
    """`[2 radius + 1]` in float64, of sum 1."""
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def gaussian_blur(images: Tensor, sigma: float, radius: int) -> Tensor:
    """Blur `[B, C, H, W]` with a (2 radius + 1)-wide Gaussian; borders are mirrored without repeating the edge.

    Works in strips of rows: beyond its result it needs memory for one strip only. kornia and torchvision, which
    ComfyUI brings, hold several copies of the image and refuse sides that are not longer than the radius.
    """
    height, width = images.shape[-2:]
    kernel = gaussian_kernel(sigma, radius).to(images)
    rows = reflect_indices(height, radius).to(images.device)
    columns = reflect_indices(width, radius).to(images.device)
    planes = images.reshape(-1, 1, height, width)
    out = torch.empty_like(planes)
    for strip in strips(height):
        around = planes.index_select(2, rows[strip.start : strip.stop + 2 * radius])
        out[:, :, strip] = blurred_strip(around, kernel, columns)
    return out.view(images.shape)


def blurred_strip(around: Tensor, kernel: Tensor, columns: Tensor) -> Tensor:
    """`[N, 1, rows, W]` of planes `[N, 1, rows + 2 radius, W]`. columns: indices of theirs and of the border's."""
    strip = F.conv2d(around, kernel.view(1, 1, -1, 1)).index_select(3, columns)
    return F.conv2d(strip, kernel.view(1, 1, 1, -1))
