"""TIFF files of 16 bits a channel, which Pillow reads and does not write: PyAV decodes, Pillow writes the tags."""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, Any

from .pictures import EXIF_IFD, PictureError

if TYPE_CHECKING:
    from PIL import Image

ROWS = 64
"""Rows in a strip."""
GPS_IFD = 0x8825
ADOBE_DEFLATE, RGB, HORIZONTAL, UNASSOCIATED = 8, 2, 2, 2
LARGEST = 2**32 - 2**24
"""Bytes that offsets of 32 bits can reach, with room for the tags."""


def pixels_of(content: bytes) -> Any:
    """A picture's colours, `[height, width, 3]` or with alpha 4, in uint16."""
    import av
    import numpy as np
    from PIL import Image

    if content.startswith(b"\x89PNG"):
        codec = av.CodecContext.create("png", "r")
        frames = codec.decode(av.Packet(content)) or codec.decode(None)
        if not frames:
            raise PictureError("a PNG file that cannot be decoded")
        name = frames[0].format.name
        if "16" in name or "48" in name or "64" in name:
            return frames[0].to_ndarray(format="rgba64le" if "a" in name.removeprefix("gray") else "rgb48le")
    with Image.open(io.BytesIO(content)) as opened:
        eight = np.asarray(opened.convert("RGBA" if "A" in opened.getbands() else "RGB"))
    return eight.astype(np.uint16) * 257


def tiff_of(content: bytes, alpha: Image.Image | None, exif: bytes, icc: bytes) -> bytes:
    """A TIFF file of 16 bits of a picture, with its photo's transparency, EXIF data and ICC profile.

    Raises PictureError for one of more than 4 GB.
    """
    import numpy as np
    from PIL import Image, TiffImagePlugin

    pixels = pixels_of(content)
    if alpha is not None and pixels.shape[2] == 3:
        resized = alpha.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BICUBIC)
        pixels = np.concatenate([pixels, np.asarray(resized, np.uint16)[..., None] * 257], axis=2)
    height, width, channels = pixels.shape
    # Differences of neighbours, modulo 2^16, are what shrinks.
    stored = pixels.astype("<u2")
    stored[:, 1:] -= stored[:, :-1].copy()
    strips = [zlib.compress(stored[row : row + ROWS].tobytes(), 6) for row in range(0, height, ROWS)]
    sizes = [len(strip) for strip in strips]
    if sum(sizes) > LARGEST:
        raise PictureError("more than 4 GB, which a TIFF file cannot hold")
    tags = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    add_exif(tags, exif)
    tags[256], tags[257], tags[258], tags[259], tags[262] = width, height, (16,) * channels, ADOBE_DEFLATE, RGB
    tags[273] = tuple(sum(sizes[:index]) for index in range(len(sizes)))
    tags[277], tags[278], tags[279], tags[284], tags[317] = channels, ROWS, tuple(sizes), 1, HORIZONTAL
    tags.tagtype[273] = tags.tagtype[279] = 4
    if channels == 4:
        tags[338] = UNASSOCIATED
    if icc:
        tags.tagtype[34675] = 7
        tags[34675] = icc
    file = io.BytesIO()
    tags.save(file)
    file.seek(0, io.SEEK_END)
    for strip in strips:
        file.write(strip)
    return file.getvalue()


def add_exif(tags: Any, exif: bytes) -> None:
    from PIL import Image

    found = Image.Exif()
    found.load(exif)
    for tag, value in found.items():
        if tag not in (EXIF_IFD, GPS_IFD):
            tags[tag] = value
    for tag in (EXIF_IFD, GPS_IFD):
        if details := dict(found.get_ifd(tag)):
            tags[tag] = details
