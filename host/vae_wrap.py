"""A VAE on a picture that goes on at its other side: it sees beyond the edge, and what meets there is blended."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.image import Around, border_indices, pad_to_multiple
from ..models.tiles.grid import Wrap, wrapped_axes
from .images import decode_latent, encode_image
from .types import VAE

SEEN = 16
"""Latent cells beyond an edge that the network sees: about as far as its convolutions reach."""

BLENDED = 8
"""Latent cells before an edge that go over into what was made as the continuation of the other side."""


def continued(field: Tensor, dims: tuple[int, int], around: Around, unit: int = 1) -> Tensor:
    """A field with SEEN + BLENDED cells of `unit` before and as many after it, along those of `dims` that go on."""
    for dim, goes_on in zip(dims, around, strict=True):
        if goes_on:
            rows = border_indices(field.shape[dim], (SEEN + BLENDED) * unit, True)
            field = field.index_select(dim, rows.to(field.device))
    return field


def closed(field: Tensor, dims: tuple[int, int], around: Around, unit: int = 1) -> Tensor:
    """What was made of a continued field, a part of it: its ends, in place, go over into each other."""
    for dim, goes_on in zip(dims, around, strict=True):
        if goes_on:
            before, blended = (SEEN + BLENDED) * unit, BLENDED * unit
            length = field.shape[dim] - 2 * before
            blended = min(blended, length)
            share = (torch.arange(1, blended + 1, device=field.device) / blended).to(field.dtype)
            shape = [1] * field.ndim
            shape[dim] = blended
            end = field.narrow(dim, before + length - blended, blended)
            # The same picture, made as what lies before the first cell.
            end.lerp_(field.narrow(dim, before - blended, blended), share.view(shape).expand_as(end))
            field = field.narrow(dim, before, length)
    return field


def encode_around(vae: VAE, image: Tensor, vae_tile: int, wrap: Wrap) -> Tensor:
    """Latent `[B, C, h, w]` of images `[B, H, W, 3]`, as encode_image gives it; without a wrap exactly that."""
    if wrap == "none":
        return encode_image(vae, image, vae_tile)
    around = wrapped_axes(wrap)
    latent = encode_image(vae, continued(image, (1, 2), around, vae.spacial_compression_encode()), vae_tile)
    return closed(latent, (2, 3), around)


def decode_around(vae: VAE, latent: Tensor, vae_tile: int, made_by: str, wrap: Wrap) -> Tensor:
    """Image `[B, H, W, 3]` in 0..1, as decode_latent gives it; without a wrap exactly that."""
    if wrap == "none":
        return decode_latent(vae, latent, vae_tile, made_by)
    around = wrapped_axes(wrap)
    decoded = decode_latent(vae, continued(latent, (2, 3), around), vae_tile, made_by)
    return closed(decoded, (1, 2), around, vae.spacial_compression_decode())


def padded_for(image: Tensor, multiple: int, wrap: Wrap, node: str) -> Tensor:
    """`[B, H, W, C]` with its right and bottom border repeated until both sides are multiples.

    Raises ValueError, naming `node`, where that would come between two ends that are to meet.
    """
    require_meeting(image.shape[2], image.shape[1], multiple, wrap, node)
    return pad_to_multiple(image, multiple)


def require_meeting(width: int, height: int, multiple: int, wrap: Wrap, node: str) -> None:
    """Raises ValueError, naming `node`, for a side that is to meet its other end and is no multiple."""
    for name, side, goes_on in zip(("height", "width"), (height, width), wrapped_axes(wrap), strict=True):
        if goes_on and side % multiple:
            below = max(side // multiple, 1) * multiple
            raise ValueError(
                f"{node}: to go on around the edge the result's {name} must be a multiple of {multiple} pixels, it is "
                f"{side}. Choose {below} or {below + multiple}, or set wrap to none."
            )
