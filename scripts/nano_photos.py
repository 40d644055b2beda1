"""Cut the training tiles of VOSR nano from photos that Debian packages carry.

mkdir packages && cd packages
apt-get download mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04
apt-get download plasma-workspace-wallpapers gcompris-qt-data
for file in *.deb; do dpkg -x $file .; done && cd ..
python scripts/nano_photos.py packages/usr/share --out data/nano

Photos alone, no drawings; weights/README.md names their authors and licences.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from cut_photos import EDGES, cut

TILE = 384
WALLPAPERS = {
    "backgrounds/mate/nature": (
        "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood YellowFlower"
    ),
    "backgrounds": (
        "Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Picture_0B_by_freespace Picture_1A_by_freespace "
        "Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi free_by_Peter_Nerlich greentock_by_Peter_Nerlich "
        "life_by_Aitzol_Berasategi picosdeeuropa_by_Aitzol_Berasategi sunset_by_Aitzol_Berasategi "
        "Kleiber_by_Lukas_Baubkus"
    ),
    "wallpapers": ("BytheWater ColdRipple ColorfulCups EveningGlow FallenLeaf Grey Kite OneStandsOut Path summer_1am"),
}
"""Photos by the folder below usr/share. Those of `wallpapers` have a folder each."""
RESOURCES = {
    "explore_monuments": {10, 12, 20, 28, 31, 33, 41, 42},
    "explore_world_animals": {0, 1, 7, 12},
}
"""gcompris-qt's bundles and which of their photos, counted in the order they are stored, are left out: misty and
scanned ones, and those that were kept to validate with or to show."""
SMALLEST = 20_000
"""Bytes of a photo in a bundle; what is smaller is an icon."""


def wallpapers(share: Path) -> Iterator[tuple[str, Image.Image]]:
    for folder, names in WALLPAPERS.items():
        for name in names.split():
            file = f"{name}/contents/images/2560x1600.jpg" if folder == "wallpapers" else f"{name}.jpg"
            with Image.open(share / folder / file) as photo:
                yield name, photo.convert("RGB")


def bundled(share: Path, bundle: str) -> Iterator[tuple[str, Image.Image]]:
    """WebP photos of a Qt resource bundle, which stores them as they are."""
    data = (share / "gcompris-qt" / "rcc" / f"{bundle}.rcc").read_bytes()
    start, index = data.find(b"RIFF"), 0
    while start >= 0:
        size = int.from_bytes(data[start + 4 : start + 8], "little") + 8
        if data[start + 8 : start + 12] == b"WEBP" and size > SMALLEST:
            if index not in RESOURCES[bundle]:
                yield f"{bundle}_{index:04d}", Image.open(io.BytesIO(data[start : start + size])).convert("RGB")
            index += 1
        start = data.find(b"RIFF", start + 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("share", type=Path, help="usr/share of the unpacked packages")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    count = sum(cut(photo, name, options.out, TILE, 2.0, 12, EDGES) for name, photo in wallpapers(options.share))
    for bundle in RESOURCES:
        # Published at 1024 pixels: shrunk by less, or no tile would fit.
        count += sum(
            cut(photo, name, options.out, TILE, 1.7, 4, EDGES) for name, photo in bundled(options.share, bundle)
        )
    print(f"{count} tiles in {options.out}")


if __name__ == "__main__":
    main()
