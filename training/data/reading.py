"""Image files of every kind as 8-bit RGB pictures, with the reason where that cannot be."""

from __future__ import annotations

import contextlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class PhotoError(Exception):
    """A photo that training cannot use; the message says why."""


def read_photo(source: Path | bytes) -> Image.Image:
    """A file, or its bytes, as an RGB picture, turned upright as its EXIF orientation says.

    16-bit levels are rounded to 8 bits (colour PNGs of 16 bits: by Pillow, which drops the lower 8). Palettes, grey,
    CMYK, YCbCr and Lab become RGB; embedded colour profiles are not applied. Of an animation it is the first frame.
    Raises PhotoError for a file that is damaged or no image, one with transparent pixels, and one of floats.
    """
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            return to_rgb(upright(image))
    except (PhotoError, MemoryError):
        raise
    except FileNotFoundError:
        raise PhotoError("there is no such file") from None
    except Exception as error:  # Pillow's decoders raise anything for damaged files
        said = " ".join(str(error).split())
        raise PhotoError(f"it cannot be read ({type(error).__name__}: {said[:160]})") from error


def photo_size(path: Path) -> tuple[int, int]:
    """(width, height) of a file as read_photo turns it, without decoding it. Raises PhotoError where it is none."""
    try:
        with Image.open(path) as image:
            orientation = 1
            with contextlib.suppress(Exception):
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            return image.size if orientation < 5 else image.size[::-1]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PhotoError(f"it cannot be read ({type(error).__name__}: {str(error)[:160]})") from error


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; as it is where there is none, or damaged EXIF."""
    with contextlib.suppress(Exception):
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded picture of any mode in RGB. Raises PhotoError as read_photo does."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if (np.asarray(image)[..., 3] < 255).any():
            raise PhotoError("it has transparent pixels")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise PhotoError(f"its values run from {levels.min()} to {levels.max()}, which are no 16-bit levels")
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise PhotoError("its pixels are floating-point numbers, whose range is not known")
    return image.convert("RGB")
