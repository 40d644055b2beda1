"""Images in and out of a VAE, whole where memory allows and in tiles where not."""

from __future__ import annotations

import math

import comfy.model_management
import torch
from torch import Tensor, nn

from ..models.image import extremes, to_levels
from .progress import following
from .types import VAE
from .vae_tiles import can_stream, decode_streamed

VAE_TILE_STEP = 64
"""The host's tiled encoding also runs half and double sides, which must fall on latent cells."""

DEFAULT_VAE_TILE = 512


IMAGE_RANGE = (-0.5, 1.5)
"""What the values of an IMAGE may reach. The host's convention is 0 to 1; a bicubic or Lanczos edge and a VAE go beyond
it by up to about 0.2. Pictures of -1 to 1 and of 0 to 255 are outside."""


def checked_image(image: Tensor, where: str = "") -> Tensor:
    """The IMAGE `[B, H, W, 3 or 4]` in float32: what every node of the pack that takes one begins with.

    where: what the message begins with, such as "Align Colors (reference): ". Raises ValueError unless it is a tensor
    of that shape and of real numbers in any precision, all finite and within IMAGE_RANGE, alpha too.
    """
    if not isinstance(image, Tensor):
        raise ValueError(f"{where}Expected images, got a {type(image).__name__}. Connect an IMAGE.")
    if image.ndim != 4 or image.shape[-1] not in (3, 4) or 0 in image.shape:
        raise ValueError(f"{where}Expected images [batch, height, width, 3 or 4 channels], got {list(image.shape)}.")
    if not image.is_floating_point():
        raise ValueError(
            f"{where}The image holds {str(image.dtype).removeprefix('torch.')} values; ComfyUI's images are real "
            "numbers from 0 to 1. The node before this one has to divide by the largest value, 255 as a rule."
        )
    # Of an IMAGE in fp8, for which torch knows no extremes.
    image = image.float() if image.itemsize == 1 else image
    low, high = extremes(image)
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int((~torch.isfinite(image)).sum())
        raise ValueError(
            f"{where}The image holds {bad} values that are not numbers (NaN or infinite). The node before this one "
            "made them: look at its output, often a half-precision VAE is the cause (--fp32-vae)."
        )
    if low < IMAGE_RANGE[0] or high > IMAGE_RANGE[1]:
        raise ValueError(
            f"{where}The image's values go from {low:.3g} to {high:.3g}; ComfyUI's images have 0 to 1, alpha too, and "
            f"{IMAGE_RANGE[0]} to {IMAGE_RANGE[1]} is taken for overshoot. The node before this one has to bring them "
            "there: values of 0 to 255 are divided by 255, values of -1 to 1 halved and raised by 0.5, and an HDR "
            "picture is tone-mapped."
        )
    return image.float()


def with_transparency(image: Tensor, mask: Tensor | None, where: str = "") -> Tensor:
    """IMAGE `[B, H, W, 3 or 4]` with what a MASK says of its transparency: as it is, or `[B, H, W, 4]`.

    mask: `[H, W]`, or `[B, H, W]` with one for each image or one for all, 1 where the image is transparent, as Load
    Image gives it. None and a mask of zeros, of any size (Load Image gives such a one for a photo without alpha),
    change nothing. A pixel that is transparent in the image's own alpha stays so. where: what the message begins with.
    Raises ValueError for a mask that is none, or of other images.
    """
    if mask is None:
        return image
    if not isinstance(mask, Tensor) or mask.ndim < 2 or 0 in mask.shape:
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{where}Expected a mask [batch, height, width], got {shape}. Connect a MASK.")
    mask = mask.float().reshape(-1, *mask.shape[-2:]).to(image.device)
    if not mask.isfinite().all():
        raise ValueError(f"{where}The mask holds values that are not numbers. Look at the node that made it.")
    if mask.max() <= 0:
        return image
    batch, height, width, _ = image.shape
    if mask.shape[1:] != (height, width):
        raise ValueError(
            f"{where}The mask is {mask.shape[2]}x{mask.shape[1]}, the image {width}x{height}. Take image and mask from "
            "the same Load Image; where the image is resized after it, resize the mask, too (Resize Image/Mask)."
        )
    if mask.shape[0] not in (1, batch):
        raise ValueError(
            f"{where}Got {mask.shape[0]} masks for {batch} images. Give one mask for each image, or one for all."
        )
    own = image[..., 3:] if image.shape[-1] == 4 else torch.ones_like(image[..., :1])
    # Load Image's 1 - alpha and back falls just below a level now and then, and Save Image rounds down.
    return torch.cat([image[..., :3], to_levels(own * (1 - mask[..., None]))], dim=-1)


def with_alpha_of(enlarged: Tensor, restored: Tensor, ours: bool) -> Tensor:
    """A restored image `[1, H, W, 3]` with the alpha of `[1, H, W, 3 or 4]`; ours: that one may be written over."""
    if enlarged.shape[-1] == 3:
        return restored
    if ours and enlarged.dtype == restored.dtype and enlarged.device == restored.device:
        enlarged[..., :3] = restored
        return enlarged
    return torch.cat([restored, enlarged[..., 3:].to(restored)], dim=-1)


class Results:
    """The restored images of a batch, one after another in the memory of the result."""

    def __init__(self, count: int):
        self.count, self.done = count, 0
        self.images: Tensor

    def add(self, image: Tensor) -> None:
        """The next one, `[1, H, W, C]`."""
        if self.count == 1:
            self.images = image
            return
        if not self.done:
            self.images = image.new_empty(self.count, *image.shape[1:])
        self.images[self.done] = image[0]
        self.done += 1


def check_vae_tile(vae_tile: int) -> None:
    """Raises ValueError unless a side in pixels, 0 for the choice by free memory, is one the VAE can tile with."""
    if vae_tile < 0 or vae_tile % VAE_TILE_STEP:
        raise ValueError(f"The VAE tile size must be 0 or a multiple of {VAE_TILE_STEP} pixels, got {vae_tile}.")


def vae_tile_for(vae: VAE, shape: tuple[int, ...], memory_used, vae_tile: int) -> int:
    """Side in pixels of VAE tiles: as told, else 0 (whole) when the host's estimate fits into free memory."""
    if vae_tile:
        return vae_tile
    free = comfy.model_management.get_free_memory(vae.device)
    return DEFAULT_VAE_TILE if memory_used(shape, vae.vae_dtype) > free else 0


def run_encode(vae: VAE, image: Tensor, vae_tile: int = 0) -> Tensor:
    """What the VAE makes of images `[B, H, W, 3]`.

    vae_tile: side in pixels of the VAE's tiles, 0 to decide by free memory. Raises ValueError when it is not finite.
    """
    batch, height, width, channels = image.shape
    frames = (1,) if vae.latent_dim == 3 else ()
    tile = vae_tile_for(vae, (batch, channels, *frames, height, width), vae.memory_used_encode, vae_tile)
    if tile:
        encoded = vae.encode_tiled(image, tile_x=tile, tile_y=tile, overlap=tile // 8)
    else:
        with following(half_of(vae, "encoder")):
            encoded = vae.encode(image)
    require_finite(encoded, "The VAE's encoder")
    return encoded


def encode_image(vae: VAE, image: Tensor, vae_tile: int = 0) -> Tensor:
    """Latent `[B, C, h, w]` of images `[B, H, W, 3]`, as the VAE encodes them (not normalised).

    vae_tile: as in run_encode. Raises ValueError for a VAE of video latents.
    """
    latent = run_encode(vae, image, vae_tile)
    require_image_latent(latent)
    return latent


def require_image_latent(latent: Tensor) -> None:
    if latent.ndim != 4:
        raise ValueError(
            f"The VAE makes video latents {list(latent.shape)}; this works on images. Use the VAE of the image model."
        )


def require_finite(values: Tensor, made_by: str) -> None:
    """Raises ValueError naming what made them unless all values are numbers: where a run's error becomes known."""
    if not all(map(math.isfinite, extremes(values))):
        raise ValueError(
            f"{made_by} made values that are not numbers (NaN or infinite), which would be a black picture. Its "
            "weights are too large for the precision it runs in, or damaged: choose fp32 or bf16 (a loader's "
            "weight_dtype; --fp32-vae for a VAE), leave LoRAs out, or download its file again."
        )


def decode_latent(vae: VAE, latent: Tensor, vae_tile: int = 0, made_by: str = "The diffusion model") -> Tensor:
    """Image `[B, H, W, 3]` in 0..1; vae_tile as in run_encode.

    Raises ValueError when the latent is not finite, naming the model that made it (made_by), or the image is not.
    """
    require_finite(latent, made_by)
    image = decode_whole_or_tiled(vae, latent, vae_tile)
    require_finite(image, "The VAE's decoder")
    return image


def decode_whole_or_tiled(vae: VAE, latent: Tensor, vae_tile: int) -> Tensor:
    tile = vae_tile_for(vae, tuple(latent.shape), vae.memory_used_decode, vae_tile)
    if not tile:
        with following(half_of(vae, "decoder")):
            return vae.decode(latent)
    side = max(1, tile // vae.spacial_compression_decode())
    if can_stream(vae, latent):
        return decode_streamed(vae, latent, side, side // 4)
    return vae.decode_tiled(latent, tile_x=side, tile_y=side, overlap=side // 4)


def half_of(vae: VAE, name: str) -> nn.Module:
    """The VAE's network "encoder" or "decoder"; all of it where these are not apart."""
    half = getattr(vae.first_stage_model, name, None)
    return half if isinstance(half, nn.Module) else vae.first_stage_model
