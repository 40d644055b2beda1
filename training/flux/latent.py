"""FLUX's latents: the space its network works in, tokens of 2 x 2 cells, and the path from image to noise."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor

from ...models.vicr.sigmas import dynamic_shift

PATCH = 2
"""Cells of a token along each side."""


def pack(latent: Tensor) -> Tensor:
    """`[B, C, h, w]` with even sides -> tokens `[B, h w / 4, 4 C]`, each (channel, row, column)."""
    return rearrange(latent, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The reverse, to a latent of `height` x `width` cells."""
    return rearrange(
        tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height // PATCH, w=width // PATCH, p=PATCH, q=PATCH
    )


def pack_mask(mask: Tensor, cell: int = 8) -> Tensor:
    """A mask in pixels `[B, H, W]` -> one channel for each pixel of a latent cell, `[B, cell^2, H / cell, W / cell]`.

    Pixel (r, c) of a cell is channel `cell` r + c.
    """
    return rearrange(mask, "b (h p) (w q) -> b (p q) h w", p=cell, q=cell)


def token_ids(height: int, width: int, device: torch.device | str) -> Tensor:
    """Positions (0, row, column) of a latent's tokens, `[h w / 4, 3]`, float32."""
    rows, columns = torch.meshgrid(
        torch.arange(height // PATCH, device=device), torch.arange(width // PATCH, device=device), indexing="ij"
    )
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()


def shifted(time: Tensor, tokens: int) -> Tensor:
    """Times in (0, 1) moved towards noise as FLUX's sampler moves them for that many image tokens."""
    factor = math.exp(dynamic_shift(tokens))
    return factor * time / (1 + (factor - 1) * time)
