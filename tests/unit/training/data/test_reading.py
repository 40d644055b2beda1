"""Image files of every kind: upright, 8-bit RGB, or the reason why not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from realisr.training.data.reading import PhotoError, read_photo

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(content: bytes) -> np.ndarray:
    photo = read_photo(content)
    assert photo.mode == "RGB"
    return np.asarray(photo)


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}
"""EXIF orientation -> what the stored rows and columns show, by the standard's table."""


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(read(encoded(Image.fromarray(RGB), exif=exif)), UPRIGHT[orientation](RGB))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_the_picture_as_it_is():
    content = encoded(Image.fromarray(RGB), exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff\xff")
    assert np.array_equal(read(content), RGB)


def test_grey_and_palettes_become_colour():
    assert np.array_equal(read(encoded(Image.fromarray(GREY))), np.dstack([GREY] * 3))
    assert np.array_equal(read(encoded(Image.fromarray(GREY > 99))), np.dstack([(GREY > 99) * np.uint8(255)] * 3))
    palette = Image.fromarray(RGB).quantize(256)
    assert np.array_equal(read(encoded(palette)), np.asarray(palette.convert("RGB")))


def test_sixteen_bits_are_rounded():
    levels = np.array([[0, 128, 129, 257, 30000], [65535, 65406, 65407, 12345, 1]], np.uint16)
    expected = np.floor(levels.astype(np.float64) / 257 + 0.5).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(read(encoded(Image.fromarray(levels), kind)), np.dstack([expected] * 3))


def test_cmyk_becomes_rgb():
    flat = Image.new("RGB", (16, 16), (200, 30, 90)).convert("CMYK")
    found = read(encoded(flat, "JPEG", quality=98)).astype(int)
    assert np.abs(found - (200, 30, 90)).max() <= 4


def test_alpha_that_hides_nothing_is_dropped_and_other_alpha_is_refused():
    opaque = np.dstack([RGB, np.full((6, 9), 255, np.uint8)])
    assert np.array_equal(read(encoded(Image.fromarray(opaque))), RGB)
    opaque[2, 3, 3] = 254
    with pytest.raises(PhotoError, match="transparent"):
        read(encoded(Image.fromarray(opaque)))
    grey = Image.fromarray(np.dstack([GREY, np.full((6, 9), 255, np.uint8)]), "LA")
    assert np.array_equal(read(encoded(grey)), np.dstack([GREY] * 3))
    palette = Image.fromarray(RGB).quantize(8)
    with pytest.raises(PhotoError, match="transparent"):
        read(encoded(palette, transparency=0))


def test_floats_are_refused():
    with pytest.raises(PhotoError, match="floating-point"):
        read(encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"))
    with pytest.raises(PhotoError, match="no 16-bit levels"):
        read(encoded(Image.fromarray(GREY.astype(np.int32) * 1000), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_a_file_that_breaks_off_is_refused(kind):
    content = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    for part in (0.1, 0.5, 0.9):
        with pytest.raises(PhotoError, match="cannot be read"):
            read(content[: int(len(content) * part)])


def test_a_bomb_is_refused():
    content = bytearray(encoded(Image.fromarray(GREY)))
    content[16:24] = (30000).to_bytes(4, "big") * 2
    with pytest.raises(PhotoError, match="cannot be read"):
        read(bytes(content))
