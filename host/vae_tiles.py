"""A VAE's tiled decoding that holds the picture once, with the host's tiles, masks and arithmetic.

The host averages three passes of tiles of different shapes, and holds a picture and its weights for each, six pictures
at the end. Here a pass is finished row of tiles by row of tiles, and joins the one picture in place: the same values in
the same order, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..models.image import strips
from .types import VAE

PASSES = ((2, 0.5), (0.5, 2), (1, 1))
"""Tiles' (height, width) in parts of the side asked for, in the host's order."""


def can_stream(vae: VAE, latent: Tensor) -> bool:
    """Whether the host would decode in plain two-dimensional tiles."""
    return (
        latent.ndim == 4
        and vae.latent_dim == 2
        and vae.extra_1d_channel is None
        and isinstance(vae.upscale_ratio, int)
        and not getattr(vae, "handles_tiling", False)
    )


@dataclass(frozen=True)
class Pass:
    """Tiles of one shape over a latent, in cells."""

    height: int
    width: int
    overlap: int

    def starts(self, length: int, tile: int) -> range:
        return range(0, length - self.overlap, tile - self.overlap) if length > tile else range(1)

    def fits(self, latent: Tensor) -> bool:
        """Whether one tile holds all of it."""
        return latent.shape[-2] <= self.height and latent.shape[-1] <= self.width

    def steps(self, latent: Tensor) -> int:
        rows, columns = self.starts(latent.shape[-2], self.height), self.starts(latent.shape[-1], self.width)
        return latent.shape[0] * len(rows) * len(columns)


def feathered(height: int, width: int, feather: int, device: Any) -> Tensor:
    """A tile's weights `[1, 1, height, width]`: rising over `feather` pixels at every side that is longer than it."""
    mask = torch.ones(1, 1, height, width, device=device)
    for dim, side in ((2, height), (3, width)):
        for line in range(feather if feather < side else 0):
            share = (line + 1) / feather
            mask.narrow(dim, line, 1).mul_(share)
            mask.narrow(dim, side - 1 - line, 1).mul_(share)
    return mask


def streamed(
    latent: Tensor, decode: Callable[[Tensor], Tensor], tiles: Pass, scale: int, channels: int, device: Any
) -> Iterator[tuple[slice, Tensor]]:
    """One latent `[1, C, h, w]` decoded in tiles: (rows, `[1, channels, rows, width]`), from the top down."""
    height, width = latent.shape[-2:]
    if tiles.fits(latent):
        yield slice(0, height * scale), decode(latent).to(device)
        return
    masks: dict[tuple[int, int], Tensor] = {}
    rows = [*tiles.starts(height, tiles.height)]
    tall = min(tiles.height, height) * scale
    total = torch.zeros(1, channels, tall, width * scale, device=device)
    weight = torch.zeros(1, 1, tall, width * scale, device=device)
    for top, following in zip(rows, [*rows[1:], height], strict=True):
        for left in tiles.starts(width, tiles.width):
            crop = latent[:, :, top : top + tiles.height, left : left + tiles.width]
            tile = decode(crop).to(device)
            sides = (tile.shape[-2], tile.shape[-1])
            if sides not in masks:
                masks[sides] = feathered(*sides, tiles.overlap * scale, device)
            place = (..., slice(0, sides[0]), slice(left * scale, left * scale + sides[1]))
            total[place] += tile * masks[sides]
            weight[place] += masks[sides]
        # Nothing below reaches above the next row of tiles.
        done = (following - top) * scale
        yield slice(top * scale, following * scale), total[:, :, :done].div_(weight[:, :, :done])
        for buffer in (total, weight):
            rest = buffer[:, :, done:].clone()
            buffer[:, :, : tall - done] = rest
            buffer[:, :, tall - done :] = 0


@torch.no_grad()
def decode_streamed(vae: VAE, latent: Tensor, side: int, overlap: int) -> Tensor:
    """Picture `[B, H, W, 3]` of latents `[B, C, h, w]`, as the host's decode_tiled gives it.

    side, overlap: of the tiles, in cells.
    """
    management, scale = comfy.model_management, vae.upscale_ratio
    vae.throw_exception_if_invalid()
    needed = vae.memory_used_decode(latent.shape, vae.vae_dtype)
    management.load_models_gpu([vae.patcher], memory_required=needed, force_full_load=vae.disable_offload)
    dtype = vae.vae_output_dtype() if hasattr(vae, "vae_output_dtype") else torch.float32

    def decode(crop: Tensor) -> Tensor:
        management.throw_exception_if_processing_interrupted()
        made = vae.first_stage_model.decode(crop.to(vae.vae_dtype).to(vae.device)).to(dtype=dtype)
        bar.update(1)
        return made

    height, width = (length * scale for length in latent.shape[-2:])
    out = torch.empty(latent.shape[0], vae.output_channels, height, width, device=vae.output_device)
    passes = [Pass(int(side * down), int(side * across), overlap) for down, across in PASSES]
    bar = comfy.utils.ProgressBar(sum(tiles.steps(latent) for tiles in passes))
    on_device = getattr(management, "cuda_device_context", lambda device: nullcontext())
    with on_device(vae.device):
        for item, picture in zip(latent.split(1), out.split(1), strict=True):
            for number, tiles in enumerate(passes):
                for rows, made in streamed(item, decode, tiles, scale, vae.output_channels, vae.output_device):
                    place = picture[:, :, rows]
                    if number == 0:
                        place.copy_(made)
                    else:
                        place.add_(made)
            for rows in strips(height):
                place = picture[:, :, rows]
                place.copy_(vae.process_output(place.div_(3.0)))
    return out.movedim(1, -1)
