"""Giving a restored image the colours of the image it was restored from.

Restoration models may shift colours. `adain` moves each channel's mean and standard deviation, `wavelet` swaps the
low frequencies (a Gaussian low-pass, despite the name it goes by).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .image import (
    LANCZOS,
    NOT_AROUND,
    Around,
    Told,
    blurred_strip,
    border_indices,
    from_bytes,
    gaussian_kernel,
    resize,
    strips,
    to_bytes,
    truncate_to_bytes,
    untold,
)

Method = Literal["adain", "wavelet", "none"]
METHODS: tuple[Method, ...] = get_args(Method)

BLUR_SIGMA = 5.0
BLUR_RADIUS = 20
EPSILON = 1e-5
BANDS = 5


def spread(image: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased standard deviation and mean of each channel of `[H, W, 3]`; the deviation of one pixel is 0."""
    pixels = image.shape[0] * image.shape[1]
    return torch.std_mean(image, dim=(0, 1), correction=min(1, pixels - 1))


def adain(image: Tensor, reference: Tensor, out: Tensor, told: Told = untold) -> None:
    """Give `image` `[H, W, 3]` the per-channel mean and (unbiased) standard deviation of `reference`, of any size.

    out: `[H, W, 3]`, what it is written to, clamped to 0..1; may be the image itself. told: how much is done.
    """
    std, mean = spread(image)
    told(1 / 3)
    ref_std, ref_mean = spread(reference)
    told(2 / 3)
    for rows in strips(image.shape[0]):
        aligned = (image[rows] - mean) / (std + EPSILON) * (ref_std + EPSILON) + ref_mean
        out[rows] = aligned.clamp_(0, 1)
        told((2 + rows.stop / image.shape[0]) / 3)


def swap_low_frequencies(
    image: Tensor, reference: Tensor, out: Tensor, around: Around = NOT_AROUND, told: Told = untold
) -> None:
    """Replace the low frequencies of `image` `[H, W, 3]` by those of `reference`, resized to it with Lanczos.

    out: `[H, W, 3]`, what it is written to, clamped to 0..1; may be the image itself. around: over which edges, (down,
    across), the picture goes on at its other side. told: how much is done.
    """
    height, width, _ = image.shape
    radius = BLUR_RADIUS
    reference = resize(reference[None], width, height, LANCZOS, around)[0]
    rows = border_indices(height, radius, around[0]).to(image.device)
    columns = border_indices(width, radius, around[1]).to(image.device)
    kernel = gaussian_kernel(BLUR_SIGMA, radius).to(image)
    # Rows as they were that the blur still needs where out is the image: the first ones, and those above the strip.
    head, kept, kept_from = image[:radius].clone(), image[:0], 0
    for strip in strips(height):
        taken = rows[strip.start : strip.stop + 2 * radius]
        whole = image.index_select(0, taken)
        above, first = (taken < strip.start) & (taken >= kept_from), (taken < kept_from) & (taken < radius)
        whole[above] = kept[taken[above] - kept_from]
        whole[first] = head[taken[first]]
        # The blur is linear: one pass over the difference stands for one over each.
        difference = (reference.index_select(0, taken) - whole).movedim(-1, 0)[:, None]
        low = blurred_strip(difference.contiguous(), kernel, columns)
        size = strip.stop - strip.start
        kept, kept_from = whole[max(size - radius, 0) : size + radius].clone(), strip.stop - 2 * radius
        out[strip] = (whole[radius : radius + size] + low[:, 0].movedim(0, -1)).clamp_(0, 1)
        told(strip.stop / height)


def dilated_blur(images: Tensor, radius: int) -> Tensor:
    """Blur `[B, C, H, W]` with the 3x3 binomial kernel spread by `radius` pixels; edges are repeated.

    torch has the convolution; no library at hand has the wavelet whose low-pass this is.
    """
    taps = torch.tensor([0.25, 0.5, 0.25]).to(images)
    kernel = torch.outer(taps, taps).expand(images.shape[1], 1, 3, 3)
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(padded, kernel, groups=images.shape[1], dilation=radius)


def lowest_band(images: Tensor, bands: int = BANDS) -> Tensor:
    """What remains of `[B, C, H, W]` after taking off `bands` bands of an undecimated wavelet transform."""
    for level in range(bands):
        images = dilated_blur(images, 2**level)
    return images


def swap_lowest_band(images: Tensor, reference: Tensor) -> Tensor:
    """Images `[B, H, W, 3]` with the lowest wavelet band of `reference`, of the same shape; clamped to 0..1.

    PURE's colour fix (arXiv 2503.11073). Its low-pass is a wavelet's, where `swap_low_frequencies` blurs with a
    Gaussian. The reference implementation truncates the result to 8 bits; see `truncate_to_bytes`.
    Raises ValueError when the shapes differ.
    """
    if images.shape != reference.shape:
        raise ValueError(f"images are {tuple(images.shape)} and their reference {tuple(reference.shape)}")
    # The transform is linear: one pass over the difference stands for one over each.
    low = lowest_band((reference - images).movedim(-1, 1)).movedim(1, -1)
    return (images + low).clamp(0, 1)


def align_colors(
    images: Tensor,
    reference: Tensor,
    method: Method,
    quantise: bool = False,
    in_place: bool = False,
    around: Around = NOT_AROUND,
    told: Told = untold,
) -> Tensor:
    """Images `[B, H, W, C]` with the colours of `reference` `[B or 1, H', W', C']`; both float in 0..1.

    Colour channels are the first three; further ones (alpha) of `images` are passed through and those of
    `reference` ignored. quantise: truncate to 8 bits before and after, as the reference implementation does.
    Images are done one at a time and in strips, so that beyond the result memory grows with neither batch nor size,
    unless they are quantised. in_place: write the result into `images`. around: over which edges, (down, across),
    the picture goes on at its other side. told: how much is done.

    Raises ValueError for an unknown method, a batch that does not fit, or fewer than three channels.
    """
    if method not in METHODS:
        raise ValueError(f"unknown colour alignment '{method}': choose one of {', '.join(METHODS)}")
    if reference.shape[0] not in (1, images.shape[0]):
        raise ValueError(
            f"the reference has {reference.shape[0]} images and there are {images.shape[0]} to align: "
            "give one reference for all, or one for each"
        )
    if images.shape[-1] < 3 or reference.shape[-1] < 3:
        raise ValueError(
            f"colours can be aligned on RGB images only; the image has {images.shape[-1]} channels, "
            f"the reference {reference.shape[-1]}"
        )
    if method == "none":
        return images
    out = images if in_place else torch.empty_like(images)
    for index, target in enumerate(out):

        def told_here(done: float, before: int = index) -> None:
            told((before + done) / len(out))

        if not in_place:
            target[..., 3:] = images[index, ..., 3:]
        image = images[index, ..., :3].float()
        model = reference[index % reference.shape[0], ..., :3].float().to(image.device)
        if quantise:
            image, model = from_bytes(truncate_to_bytes(image)), from_bytes(to_bytes(model))
        if method == "adain":
            adain(image, model, target[..., :3], told_here)
        else:
            swap_low_frequencies(image, model, target[..., :3], around, told_here)
        if quantise:
            target[..., :3] = from_bytes(truncate_to_bytes(target[..., :3]))
    return out
