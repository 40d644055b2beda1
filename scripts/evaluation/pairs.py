"""Image files: which belong together, whether they can be compared, and their pixels.

Everything that can be seen in the files' headers is checked before anything is computed, so that an error names all
files at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
NAMED_AT_MOST = 12
ROLE = re.compile(r"_(?:LR\d*|HR|LQ|GT|SR|x\d+)$", re.IGNORECASE)
"""How data sets mark a file's role at the end of its name: Canon_001_LR4 and Canon_001_HR are one picture."""
ORIENTATION = 0x0112
"""EXIF tag; 1 is upright."""


class EvaluateError(Exception):
    """The evaluation cannot go on; the message says what to change."""


@dataclass(frozen=True)
class Pair:
    """One result with what it is compared with."""

    name: str
    result: Path
    reference: Path | None = None
    lq: Path | None = None

    @property
    def stamp(self) -> str:
        """Changes when one of the compared files does."""
        return " ".join(file_stamp(path) for path in (self.result, self.reference) if path is not None)


def file_stamp(path: Path) -> str:
    """Changes when the file is replaced."""
    found = path.stat()
    return hashlib.sha256(f"{found.st_size} {found.st_mtime_ns}".encode()).hexdigest()[:12]


def listed(items: Iterable[str]) -> str:
    lines = list(items)
    more = [f"... and {len(lines) - NAMED_AT_MOST} more"] if len(lines) > NAMED_AT_MOST else []
    return "\n".join(f"  {line}" for line in [*lines[:NAMED_AT_MOST], *more])


def images_of(folder: Path) -> dict[str, Path]:
    """Image files of a folder by name without suffix, sorted. Raises EvaluateError for none, or a name twice."""
    if not folder.is_dir():
        raise EvaluateError(f"there is no folder {folder}")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise EvaluateError(f"{folder} has no images ({', '.join(sorted(SUFFIXES))})")
    found: dict[str, Path] = {}
    twice = [path for path in paths if found.setdefault(path.stem, path) is not path]
    if twice:
        raise EvaluateError(f"{folder} has several files of one name:\n{listed(path.name for path in twice)}")
    return found


def pair_up(
    results: Path, references: Path | None, lqs: Path | None = None, subset: bool = False, in_order: bool = False
) -> list[Pair]:
    """Each result with the reference and LQ image of its name, or of its name without a role such as _LR4 or _HR.

    subset: leave out what is on one side only. in_order: pair the sorted files whatever they are called. Raises
    EvaluateError that names what has no partner.
    """
    found = images_of(results)
    partners = None if references is None else partner_of(found, references, subset, in_order)
    sources = None if lqs is None else partner_of(found, lqs, True, in_order)
    names = found if partners is None else [name for name in found if name in partners]
    return [
        Pair(
            name,
            found[name],
            None if partners is None else partners[name],
            None if sources is None else sources.get(name),
        )
        for name in names
    ]


def partner_of(found: Mapping[str, Path], folder: Path, subset: bool, in_order: bool) -> dict[str, Path]:
    """The file of `folder` for every name in `found`. Raises EvaluateError unless all are there, or `subset`."""
    others = images_of(folder)
    if in_order:
        if len(others) != len(found):
            raise EvaluateError(
                f"{len(found)} results and {len(others)} files in {folder}: they cannot be paired in order"
            )
        return dict(zip(found, others.values(), strict=True))
    key = str if found.keys() & others.keys() else without_role
    by_key = unique({name: key(name) for name in others}, folder)
    keys = unique({name: key(name) for name in found}, next(iter(found.values())).parent)
    partners = {keys[each]: others[by_key[each]] for each in keys if each in by_key}
    missing = [found[keys[each]].name for each in keys if each not in by_key]
    unused = [others[by_key[each]].name for each in by_key if each not in keys]
    if not partners or (not subset and (missing or unused)):
        parts = [f"without a partner in {folder}:\n{listed(missing)}"] if missing else []
        parts += [f"in {folder} without a result:\n{listed(unused)}"] if unused else []
        raise EvaluateError(
            "\n".join(parts) + "\nNames must agree (a role such as _LR4 or _HR may differ). --subset leaves these out, "
            "--in-order pairs the sorted files whatever they are called."
        )
    return {name: partners[name] for name in found if name in partners}


def without_role(name: str) -> str:
    return ROLE.sub("", name)


def unique(keys: Mapping[str, str], folder: Path) -> dict[str, str]:
    """key -> name. Raises EvaluateError where two files come to one key."""
    found: dict[str, str] = {}
    clashes = [name for name, key in keys.items() if found.setdefault(key, name) != name]
    if clashes:
        raise EvaluateError(f"in {folder} several files could be one picture:\n{listed(clashes)}")
    return found


def check_files(pairs: Sequence[Pair], center_crop: int = 0, smallest: int = 1) -> None:
    """Raises EvaluateError that names every file that no 8-bit RGB or grey image is, and every pair of two sizes.

    smallest: least side in pixels. Reads headers only.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    complaints: list[str] = []
    for path in dict.fromkeys(path for pair in pairs for path in (pair.result, pair.reference) if path is not None):
        try:
            with Image.open(path) as image:
                width, height = image.size
                complaint = complaint_about(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            complaints.append(f"{path}: cannot be read ({error})")
            continue
        sizes[path] = (cropped(width, center_crop), cropped(height, center_crop))
        if complaint:
            complaints.append(f"{path}: {complaint}")
        elif min(sizes[path]) < smallest:
            complaints.append(f"{path}: {width} x {height} pixels are too few, {smallest} are needed on each side")
    for pair in pairs:
        size, wanted = sizes.get(pair.result), None if pair.reference is None else sizes.get(pair.reference)
        if size and wanted and size != wanted:
            complaints.append(
                f"{pair.result}: {size[0]} x {size[1]} pixels, but {wanted[0]} x {wanted[1]} in {pair.reference}"
            )
    if complaints:
        raise EvaluateError(
            f"{len(complaints)} of the files cannot be compared as they are; nothing is converted, resized or left out "
            f"silently:\n{listed(complaints)}"
        )


def complaint_about(image: Image.Image) -> str:
    """What keeps an opened image from being compared, or "". Grey is fine: three equal channels."""
    if (frames := getattr(image, "n_frames", 1)) > 1:
        return f"an animation or a stack of {frames} images"
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return "has alpha (transparency); put it on a background or remove it"
    if image.mode == "P":
        return "a palette image; save it as RGB"
    if image.mode == "CMYK":
        return "CMYK; save it as RGB"
    # Pillow opens 16-bit RGB as RGB and drops the lower bytes: only what it decodes from tells.
    raw = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.mode.startswith(("I", "F")) or ";16" in raw:
        return "more than 8 bits per channel; save it with 8"
    if image.mode not in ("RGB", "L"):
        return f"of mode {image.mode}; save it as RGB"
    # Asked for what a PNG's header does not have, Pillow would decode the whole image.
    if ("exif" in image.info or image.format != "PNG") and image.getexif().get(ORIENTATION, 1) != 1:
        return "turned by an EXIF tag, which programs read differently; save it upright"
    return ""


def cropped(side: int, center_crop: int) -> int:
    return min(side, center_crop) if center_crop else side


def read_pixels(path: Path, center_crop: int = 0) -> np.ndarray:
    """An image as uint8 `[H, W, 3]`, cut to the centre where it is larger. Raises EvaluateError that names the file."""
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise EvaluateError(f"{path}: cannot be read ({error})") from error
    height, width = (cropped(side, center_crop) for side in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
