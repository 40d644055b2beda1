"""Files of pictures: whether they are whole, what a photo carries besides its colours, and results in other formats.

Pillow is needed for more than passing PNG files on. Pixels of a photo go to the host as they are, but upright and in
an RGB space; its EXIF data, ICC profile and transparency go around the host into the result.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from . import RestoreError

if TYPE_CHECKING:
    from PIL import Image

SUFFIX_OF = {"png": ".png", "webp": ".webp", "jpeg": ".jpg", "tiff": ".tif"}
PNG = b"\x89PNG\r\n\x1a\n"
ORIENTATION, EXIF_IFD, PIXEL_SIZE = 0x0112, 0x8769, (0xA002, 0xA003)
ABOUT_PIXELS = {254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 277, 278, 279, 280, 281, 284, 317, 320, 322, 323, 324}
ABOUT_PIXELS |= {325, 330, 338, 339, 347, 513, 514, 529, 530, 531, 532, 700, 33723, 34377, 34675}
"""Tags of a TIFF file that describe how it stores pixels, or another file inside it."""


class PictureError(ValueError):
    """A file that cannot be taken as it is."""


@dataclass(frozen=True)
class Photograph:
    """A photo as it goes to a host, and what goes around it.

    upload, suffix: the file for the host. alpha: transparency, upright, in the photo's size. note: what is lost.
    """

    upload: bytes
    suffix: str
    exif: bytes = b""
    icc: bytes = b""
    alpha: Image.Image | None = None
    note: str = ""


@cache
def pillow() -> Any:
    """Pillow's Image module, or None. Photos may be of any size."""
    try:
        module: Any = importlib.import_module("PIL.Image")
    except ImportError:
        return None
    module.MAX_IMAGE_PIXELS = None
    return module


def check_format(name: str) -> None:
    """Raises RestoreError where a format cannot be written here."""
    if name != "png" and pillow() is None:
        raise RestoreError(f"--format {name} needs Pillow: run this with ComfyUI's Python, or `pip install pillow`")
    if name == "tiff":
        try:
            importlib.import_module("av")
        except ImportError:
            raise RestoreError(
                "--format tiff needs PyAV, for 16 bits: run this with ComfyUI's Python, or `pip install av`"
            ) from None


def check_picture(content: bytes) -> None:
    """Raises PictureError for what is no picture, or half of one."""
    if content.startswith(PNG):
        if [kind for kind, _ in chunks(content)][-1:] != [b"IEND"]:
            raise PictureError("a PNG file without its end")
        return
    image = pillow()
    known = content[:3] == b"\xff\xd8\xff" or content[:4] in (b"RIFF", b"II*\0", b"MM\0*") or content[:3] == b"GIF"
    if not known:
        raise PictureError(f"{len(content)} bytes that are no picture ({content[:20]!r})")
    if image is not None:
        with reading(), image.open(io.BytesIO(content)) as opened:
            opened.load()


def chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and data of a PNG file's chunks. Raises PictureError at a chunk that is damaged or cut."""
    position = len(PNG)
    while position < len(content):
        head = content[position : position + 8]
        if len(head) < 8:
            raise PictureError("a PNG file that is cut off")
        length, kind = struct.unpack(">I4s", head)
        data = content[position + 8 : position + 8 + length]
        end = content[position + 8 + length : position + 12 + length]
        if len(data) < length or len(end) < 4:
            raise PictureError("a PNG file that is cut off")
        if struct.unpack(">I", end)[0] != zlib.crc32(data, zlib.crc32(kind)):
            raise PictureError(f"a PNG file with a damaged {kind!r} chunk")
        yield kind, data
        position += 12 + length


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """What Pillow raises for odd files, as PictureError."""
    try:
        yield
    except PictureError:
        raise
    except MemoryError:
        raise PictureError("not enough memory for this picture") from None
    except Exception as error:  # Pillow's plugins raise nearly everything
        raise PictureError(f"not readable as a picture ({error!r:.200})") from error


def photograph(content: bytes, suffix: str) -> Photograph:
    """A photo's file for the host. What Pillow cannot read goes as it is: the host may."""
    image = pillow()
    plain = Photograph(content, suffix)
    if image is None:
        return plain
    try:
        with reading(), image.open(io.BytesIO(content)) as opened:
            if getattr(opened, "n_frames", 1) > 1:
                return plain
            return described(opened, plain)
    except PictureError:
        return plain


def described(opened: Image.Image, plain: Photograph) -> Photograph:
    from PIL import ImageOps

    notes = []
    turned = opened.getexif().get(ORIENTATION, 1) in range(2, 9)
    upright = ImageOps.exif_transpose(opened) if turned else opened
    exif = exif_of(opened)
    if exif is None:
        notes.append("EXIF data that cannot be read")
    icc = opened.info.get("icc_profile") or b""
    has_alpha = "A" in opened.getbands() or "a" in opened.getbands() or "transparency" in opened.info
    foreign = opened.mode in ("CMYK", "LAB", "YCbCr", "HSV")
    gray_profile = bool(icc) and profile_space(icc) != "RGB "
    if gray_profile and opened.mode.startswith(("I", "F")):
        gray_profile, icc = False, b""
        notes.append("the ICC profile of a picture of 16 bits")
    upload, suffix, alpha = plain.upload, plain.suffix, None
    if turned or foreign or has_alpha or gray_profile:
        upright.load()
        if has_alpha:
            alpha = upright.convert("RGBA").getchannel("A")
            alpha = None if alpha.getextrema() == (255, 255) else alpha
        if foreign or gray_profile:
            upright, lost = in_srgb(upright, icc)
            icc = b""
            notes += lost
        if turned or foreign or gray_profile:
            upload, suffix = as_png(upright), ".png"
    return Photograph(upload, suffix, exif or b"", icc, alpha, "; ".join(notes))


def exif_of(opened: Image.Image) -> bytes | None:
    """EXIF data of a photo for its upright result; None for damaged ones."""
    try:
        exif = opened.getexif()
        if ORIENTATION in exif:
            exif[ORIENTATION] = 1
        for tag in ABOUT_PIXELS & set(exif):
            del exif[tag]
        details = exif.get_ifd(EXIF_IFD)
        for tag in PIXEL_SIZE:
            details.pop(tag, None)
        return exif.tobytes() if len(exif) or details else b""
    except Exception:  # nearly everything, for damaged data
        return None


def profile_space(icc: bytes) -> str:
    """The colours that a profile is for: "RGB ", "GRAY", "CMYK"."""
    return icc[16:20].decode("latin-1")


def in_srgb(image: Image.Image, icc: bytes) -> tuple[Image.Image, list[str]]:
    """An image of another colour space, or with a profile of one, as sRGB; and what is lost by that."""
    from PIL import ImageCms

    base = image if image.mode in ("CMYK", "LAB") else image.convert("L" if profile_space(icc) == "GRAY" else "RGB")
    if icc:
        try:
            profiles = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(base, *profiles, outputMode="RGB")
            if converted is not None:
                return converted, []
        except (ImageCms.PyCMSError, OSError, ValueError):
            return base.convert("RGB"), ["an ICC profile that does not fit"]
    return base.convert("RGB"), []


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, exif=b"", icc_profile=None)
    return file.getvalue()


def encoded(content: bytes, photo: Photograph, form: str, quality: int) -> tuple[bytes, str]:
    """A result in the asked format (a key of SUFFIX_OF) with what its photo carries; and what is lost by it.

    quality: of JPEG and WebP, 1 to 100; 100 makes WebP lossless. Raises PictureError.
    """
    image = pillow()
    is_png = content.startswith(PNG)
    if form == "png" and is_png and (image is None or not (photo.exif or photo.icc or photo.alpha)):
        return content, ""
    if image is None:
        raise PictureError("the workflow's result is no PNG file, and Pillow is not here to make one of it")
    with reading(), image.open(io.BytesIO(content)) as opened:
        alpha = None if "A" in opened.getbands() else photo.alpha
        if form == "png" and is_png and alpha is None:
            return with_chunks(content, photo), ""
        if form == "tiff":
            from .tiff import tiff_of

            return tiff_of(content, alpha, photo.exif, photo.icc), ""
        opened.load()
        result = opened if opened.mode in ("RGB", "RGBA", "L") else opened.convert("RGBA" if alpha else "RGB")
        if alpha is not None:
            result = result.convert("RGB")
            result.putalpha(alpha.resize(result.size, image.Resampling.BICUBIC))
        return saved(result, opened, photo, form, quality)


def saved(result: Image.Image, opened: Image.Image, photo: Photograph, form: str, quality: int) -> tuple[bytes, str]:
    file, note = io.BytesIO(), ""
    carried = {name: value for name, value in (("exif", photo.exif), ("icc_profile", photo.icc)) if value}
    if form == "png":
        from PIL.PngImagePlugin import PngInfo

        texts = PngInfo()
        for key, text in getattr(opened, "text", {}).items():
            texts.add_text(key, str(text))
        result.save(file, "PNG", pnginfo=texts, compress_level=4, **carried)
    elif form == "webp":
        if max(result.size) > 16383:
            raise PictureError(f"{result.width} x {result.height} pixels are too many for WebP, which ends at 16383")
        result.save(file, "WEBP", quality=quality, lossless=quality == 100, exact=True, **carried)
    else:
        if max(result.size) > 65500:
            raise PictureError(f"{result.width} x {result.height} pixels are too many for JPEG, which ends at 65500")
        note = "JPEG has no transparency" if "A" in result.getbands() else ""
        result.convert("RGB").save(file, "JPEG", quality=quality, subsampling=0, optimize=True, **carried)
    return file.getvalue(), note


def with_chunks(content: bytes, photo: Photograph) -> bytes:
    """A PNG file with EXIF data and ICC profile in place of its own, the pixels untouched, of 16 bits or not."""
    own: list[tuple[bytes, bytes]] = []
    if photo.icc:
        own.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(photo.icc)))
    if photo.exif:
        own.append((b"eXIf", photo.exif.removeprefix(b"Exif\0\0")))
    replaced = {kind for kind, _ in own} | ({b"sRGB", b"gAMA", b"cHRM"} if photo.icc else set())
    kept = [(kind, data) for kind, data in chunks(content) if kind not in replaced]
    made = [PNG]
    for kind, data in [*kept[:1], *own, *kept[1:]]:
        made += [struct.pack(">I4s", len(data), kind), data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))]
    return b"".join(made)
