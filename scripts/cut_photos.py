"""Shrink photos and cut them into training tiles, without the flat ones.

python scripts/cut_photos.py --out data/tiles --tile 384 photos/*.jpg

Every photo is shrunk by at least --shrink, because a published file's own noise and compression must not be what the
network learns to make, and again by 2 where it stays large enough. Of the tiles of each size, those with the strongest
edges are kept, at most --keep.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

EDGES = 6.0
"""Weakest edges of a tile that is kept, in 8-bit levels."""


def levels(photo: Image.Image, shrink: float, tile: int) -> list[np.ndarray]:
    """The photo shrunk by `shrink`, 2 `shrink`, ... while a tile fits, as uint8 `[H, W, 3]`."""
    found = []
    factor = shrink
    while min(photo.size) / factor >= tile:
        size = (round(photo.width / factor), round(photo.height / factor))
        found.append(np.array(photo.resize(size, Image.Resampling.LANCZOS)))
        factor *= 2
    return found


def tiles(image: np.ndarray, side: int) -> list[np.ndarray]:
    """Square tiles that cover the image evenly, overlapping where they must."""
    rows, columns = (
        np.linspace(0, length - side, -(-length // side)).round().astype(int) for length in image.shape[:2]
    )
    return [image[top : top + side, left : left + side] for top in rows for left in columns]


def edge_strength(image: np.ndarray) -> float:
    """Mean absolute difference of neighbours in 8-bit levels, of the half of the tile where it is largest."""
    grey = image.astype(np.float32).mean(axis=-1)
    change = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    return float(change[change >= np.median(change)].mean())


def cut(photo: Image.Image, name: str, out: Path, tile: int, shrink: float, keep: int, edges: float) -> int:
    """Write the tiles of one RGB photo as `name`_000.png and so on; returns how many."""
    count = 0
    for image in levels(photo, shrink, tile):
        ranked = sorted(tiles(image, tile), key=edge_strength, reverse=True)
        for kept in [each for each in ranked if edge_strength(each) >= edges][:keep]:
            Image.fromarray(kept).save(out / f"{name}_{count:03d}.png", compress_level=1)
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tile", type=int, default=384, help="side in pixels")
    parser.add_argument("--shrink", type=float, default=2.0)
    parser.add_argument("--keep", type=int, default=12, help="tiles of each photo and size")
    parser.add_argument("--edges", type=float, default=EDGES, help="leave out tiles with weaker edges, in 8-bit levels")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for path in options.photos:
        with Image.open(path) as file:
            photo = file.convert("RGB")
        count = cut(photo, path.stem, options.out, options.tile, options.shrink, options.keep, options.edges)
        print(f"{path.name} {photo.width}x{photo.height}: {count} tiles", flush=True)


if __name__ == "__main__":
    main()
