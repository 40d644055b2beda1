"""Folders of small pictures for tests of scripts/evaluate.py."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("lake", "tower", "street")


def picture(seed: int, height: int = 24, width: int = 20) -> np.ndarray:
    """A smooth uint8 picture `[H, W, 3]`."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def noisy(image: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return (image + noise).round().clip(0, 255).astype(np.uint8)


def save_set(
    folder: Path, methods: Sequence[tuple[str, float]], names: Sequence[str] = NAMES, side: tuple[int, int] = (24, 20)
) -> None:
    """`reference/` and a folder per method, with noise of its sigma."""
    (folder / "reference").mkdir(parents=True)
    for method, _ in methods:
        (folder / method).mkdir()
    for seed, name in enumerate(names):
        image = picture(seed, *side)
        Image.fromarray(image).save(folder / "reference" / f"{name}.png")
        for method, sigma in methods:
            Image.fromarray(noisy(image, sigma, seed)).save(folder / method / f"{name}.png")


def save_png_16_bit(path: Path, height: int = 24, width: int = 20) -> None:
    """RGB with 16 bits per channel, which Pillow reads and cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes(range(6)) * width for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
