"""Pictures as they are sent: small enough, without transparency, JPEG in a data: URL."""

from __future__ import annotations

import base64
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor


def as_rgb(image: Tensor) -> Tensor:
    """`[H, W, C]` in 0..1 with C of 1 (grey), 3 or 4 (alpha) -> `[H, W, 3]`; transparent parts become white.

    Raises ValueError for another shape and for values that are not numbers.
    """
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"an image for a vision-language model is [H, W, 1, 3 or 4], this one is {list(image.shape)}")
    if not torch.isfinite(image).all():
        raise ValueError(
            "the image holds values that are not numbers (NaN or infinite). Look at the output of the node before this "
            "one; often a half-precision VAE is the cause (--fp32-vae)."
        )
    image = image.float().clamp(0, 1)
    if image.shape[-1] == 4:
        color, alpha = image[..., :3], image[..., 3:]
        return color * alpha + (1 - alpha)
    return image.expand(-1, -1, 3)


def to_bytes(image: Tensor) -> Tensor:
    """`[H, W, C]` in 0..1 -> `[H, W, 3]` of 8-bit levels on the CPU. Raises ValueError as as_rgb does.

    models/image.py rounds alike for batches; services know nothing of models.
    """
    return (as_rgb(image) * 255).round().to(device="cpu", dtype=torch.uint8).contiguous()


def to_pil(image: Tensor, max_side: int) -> Image.Image:
    """8-bit RGB picture of an image `[H, W, C]`, shrunk so that no side is longer than `max_side` pixels."""
    picture = Image.fromarray(to_bytes(image).numpy())
    scale = max_side / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def fit(image: Tensor, max_side: int) -> Tensor:
    """`[H, W, C]` -> `[H', W', 3]` float32 on the CPU, 8-bit values, no side longer than `max_side`."""
    picture = to_pil(image, max_side)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).float() / 255


def jpeg_data_url(image: Tensor, max_side: int, quality: int) -> str:
    """The picture as `data:image/jpeg;base64,...`. quality: JPEG's, 1..100; chroma is subsampled below 90."""
    stream = BytesIO()
    to_pil(image, max_side).save(stream, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
