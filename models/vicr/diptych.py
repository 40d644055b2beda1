"""VICR's diptych: a low-quality panel beside an empty one of the same size, which the model fills (arXiv 2606.00704).

The canvas is [ LQ | target ] along the width, as the paper has it, or stacked [ LQ / target ] along the height. Both
panels have sides that are multiples of 16, so that the seam falls between FLUX's latent patches (2 x 2 cells of 8
pixels). The target panel holds 0.5, the value that is zero in the VAE's -1..1 range, and ones in the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..tiles.grid import Box

Layout = Literal["side by side", "stacked"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

PANEL_MULTIPLE = 16
EMPTY = 0.5
"""Value of pixels still to be generated."""


def seam_dim(layout: Layout) -> Literal[-1, -2]:
    """The dimension of a `[..., H, W]` field along which the panels are joined."""
    return -1 if layout == "side by side" else -2


def nearest_to_square(width: int, height: int) -> Layout:
    """The layout whose canvas is nearer to a square: stacked for panels wider than tall."""
    return "stacked" if width > height else "side by side"


def join(lq: Tensor, target: Tensor, layout: Layout) -> Tensor:
    """Two equal fields `[..., H, W]` as one canvas, LQ first."""
    return torch.cat([lq, target], dim=seam_dim(layout))


def split(canvas: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The (LQ, target) panels of a canvas `[..., H, W]`, as views."""
    lq, target = canvas.chunk(2, dim=seam_dim(layout))
    return lq, target


def empty_target(lq: Tensor, layout: Layout) -> Tensor:
    """Canvas image of LQ panels `[B, C, H, W]` in 0..1 with a target still to be generated."""
    return join(lq, torch.full_like(lq, EMPTY), layout)


def target_mask(height: int, width: int, layout: Layout, batch: int = 1) -> Tensor:
    """Mask `[B, H, W]` of a canvas of two panels of `height` x `width`: ones where to generate."""
    panel = torch.zeros(batch, height, width)
    return join(panel, torch.ones_like(panel), layout)


@dataclass(frozen=True, eq=False)
class Diptych:
    """Where the panels of a canvas lie, and what the crop needs to undo the padding."""

    width: int
    """The one asked for, in pixels. Panels are padded on the right and at the bottom."""
    height: int
    """As width."""
    layout: Layout = "side by side"
    alpha: Tensor | None = None
    """The image's opacity at the size asked for, `[B, height, width, 1]` in 0..1."""

    @property
    def panel_width(self) -> int:
        return padded(self.width)

    @property
    def panel_height(self) -> int:
        return padded(self.height)

    @property
    def canvas_width(self) -> int:
        return self.panel_width * (2 if self.layout == "side by side" else 1)

    @property
    def canvas_height(self) -> int:
        return self.panel_height * (2 if self.layout == "stacked" else 1)

    def panel_boxes(self, unit: int = 1) -> tuple[Box, Box]:
        """Places of the (LQ, target) panels in the canvas, in cells of `unit` pixels (8 for FLUX latents)."""
        height, width = self.panel_height // unit, self.panel_width // unit
        lq = Box(0, 0, height, width)
        target = Box(0, width, height, width) if self.layout == "side by side" else Box(height, 0, height, width)
        return lq, target


def padded(side: int) -> int:
    return -(-side // PANEL_MULTIPLE) * PANEL_MULTIPLE


def bicubic(images: Tensor, width: int, height: int) -> Tensor:
    """Images `[B, H, W, C]` in 0..1 resampled to `[B, height, width, C]`: Keys' kernel with a = -0.5, antialiased.

    In floating point, clamped to 0..1; not rounded to 8 bits, unlike `models.image.upscale`.
    """
    planes = rearrange(images, "b h w c -> b c h w").float()
    if planes.shape[-2:] != (height, width):
        planes = F.interpolate(planes, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return rearrange(planes.clamp(0, 1), "b c h w -> b h w c")


def pad_panel(images: Tensor) -> Tensor:
    """Images `[B, C, H, W]` continued on the right and at the bottom to multiples of 16.

    By reflection; along a side too short to reflect, by repeating the edge.
    """
    for dim in (-1, -2):
        length = images.shape[dim]
        missing = padded(length) - length
        mode = "reflect" if missing < length else "replicate"
        images = F.pad(images, (0, missing, 0, 0) if dim == -1 else (0, 0, 0, missing), mode=mode)
    return images


@dataclass(frozen=True, eq=False)
class DiptychImages:
    """What a restoration starts from, batches B alike."""

    canvas: Tensor
    """`[B, H, W, 3]` in 0..1."""
    mask: Tensor
    """`[B, H, W]`, ones where to generate."""
    lq: Tensor
    """The LQ images at the size asked for, `[B, height, width, 3]`."""
    diptych: Diptych


def build_diptych(images: Tensor, width: int, height: int, layout: Layout) -> DiptychImages:
    """Canvas, mask and record for LQ images `[B, h, w, 3 or 4]` in 0..1 to be restored at `width` x `height` pixels.

    A fourth channel is opacity: it is resampled by itself and kept in the record. Raises ValueError for images of
    another shape.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise ValueError(f"expected images [B, H, W, 3 or 4], got {list(images.shape)}")
    lq = bicubic(images, width, height)
    alpha = lq[..., 3:] if lq.shape[-1] == 4 else None
    lq = lq[..., :3]
    diptych = Diptych(width, height, layout, alpha)
    canvas = empty_target(pad_panel(rearrange(lq, "b h w c -> b c h w")), layout)
    mask = target_mask(diptych.panel_height, diptych.panel_width, layout, len(images))
    return DiptychImages(rearrange(canvas, "b c h w -> b h w c").contiguous(), mask, lq, diptych)


def crop_target(canvas: Tensor, diptych: Diptych) -> Tensor:
    """The restored panel of decoded canvases `[B, H, W, 3]` at the size asked for, `[B, height, width, 3 or 4]`.

    Opacity the images came with is rejoined; where there are k results for each image, in runs through all images,
    it is repeated alike. Raises ValueError for a canvas of another size or number.
    """
    found = (canvas.shape[2], canvas.shape[1])
    expected = (diptych.canvas_width, diptych.canvas_height)
    if found != expected:
        raise ValueError(
            f"this record belongs to a canvas of {expected[0]}x{expected[1]} pixels, the image is {found[0]}x{found[1]}"
        )
    if canvas.shape[-1] != 3:
        raise ValueError(f"expected a decoded canvas with 3 channels, got {canvas.shape[-1]}")
    target = diptych.panel_boxes()[1]
    panel = canvas[:, target.top : target.top + diptych.height, target.left : target.left + diptych.width]
    if diptych.alpha is None:
        return panel.contiguous()
    repeats, rest = divmod(len(canvas), len(diptych.alpha))
    if rest or not repeats:
        raise ValueError(
            f"the record holds the alpha of {len(diptych.alpha)} images, which does not divide among {len(canvas)}"
        )
    return torch.cat([panel, diptych.alpha.to(panel).repeat(repeats, 1, 1, 1)], dim=-1)
