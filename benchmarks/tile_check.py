"""How often Check Tiles is right: faults put into tiles on purpose, and tiles that are good.

    python3 dev/host_env.py run -- benchmarks/tile_check.py               (photos the limits were not chosen on)
    python3 dev/host_env.py run -- benchmarks/tile_check.py --calibration (photos they were chosen on)
    python3 dev/host_env.py run -- benchmarks/tile_check.py --side 256 --tile 64 --overlap 16

The central square of each photo is degraded three ways (x2 with noise and JPEG, x4 with noise and JPEG, x4 real-world
of second order) and restored four ways: Pillow's bicubic, VOSR nano in one step, total variation denoising, and the
original itself, which has all the detail a generative method could invent and be right. Each of those is a clean image:
any tile found bad in it is a false alarm. Then one tile at a time gets a fault (tests/harness/tile_faults.py), blended
with its neighbours as merging tiles does; it is found when that tile is reported. A fault counts as visible when it
changes the tile's cell by at least 10 levels of 255 (root mean square): the black sky that went black is no fault.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor

from _pack import load_pack

load_pack()
from nano_quality import Nano, central, held_out_photos  # noqa: E402

from harness.tile_faults import FAULTS, inject  # noqa: E402
from realisr.models.degradation.real_world import FIRST_ROUND, SECOND_ROUND, RealWorldDegradation  # noqa: E402
from realisr.models.degradation.simple import SimpleDegradation  # noqa: E402
from realisr.models.image import from_bytes, to_bytes, upscale  # noqa: E402
from realisr.models.tile_check.cells import tile_cells  # noqa: E402
from realisr.models.tile_check.check import check_tiles  # noqa: E402
from realisr.models.tiles.grid import TileGrid  # noqa: E402
from realisr.training.data import builtin_photos  # noqa: E402

CALIBRATION_PHOTOS = (
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "camera.png",
    "brick.png",
    "coins.png",
    "moon.png",
    "gravel.png",
    "grass.png",
)
DEGRADATIONS = {
    "x2": SimpleDegradation(2, noise_sigma=12 / 255, jpeg_quality=70),
    "x4": SimpleDegradation(4, noise_sigma=8 / 255, jpeg_quality=60),
    "x4 real-world": RealWorldDegradation(4, (FIRST_ROUND, SECOND_ROUND)),
}
FAULTY_METHODS = ("VOSR nano", "original")
VISIBLE = 10.0
"""Levels of 255."""


@dataclass(frozen=True)
class Case:
    """One clean image."""

    photo: str
    degradation: str
    method: str
    restored: Tensor
    """`[H, W, 3]`, as the enlarged low-quality image."""
    lq: Tensor
    scale: float


@dataclass
class Tally:
    """Counts by name."""

    clean: Counter[str] = field(default_factory=Counter)
    alarms: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    visible: Counter[str] = field(default_factory=Counter)
    visible_found: Counter[str] = field(default_factory=Counter)
    collateral: Counter[str] = field(default_factory=Counter)
    """Good tiles reported beside a faulty one."""
    others: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def as_image(photo: np.ndarray) -> Tensor:
    """uint8 `[H, W, 3]` -> `[1, H, W, 3]` in 0..1."""
    return from_bytes(torch.from_numpy(np.ascontiguousarray(photo)))[None]


def cases(photos: dict[str, np.ndarray], nano: Nano, seed: int) -> Iterator[Case]:
    for index, (name, photo) in enumerate(photos.items()):
        original = as_image(photo)
        height, width = photo.shape[:2]
        for kind, degradation in DEGRADATIONS.items():
            generator = torch.Generator().manual_seed(seed + index)
            low = degradation(original.movedim(-1, 1), generator).movedim(1, -1).contiguous()
            lq = upscale(low, width, height)
            restored = {
                "bicubic": lq,
                "VOSR nano": as_image(nano.restore(to_bytes(lq[0]).numpy(), seed, 1, guidance=1.0)),
                "total variation": torch.from_numpy(
                    denoise_tv_chambolle(lq[0].numpy(), weight=0.08, channel_axis=-1)
                ).float()[None],
                "original": original,
            }
            for method, image in restored.items():
                yield Case(name, kind, method, image[0], lq[0], width / low.shape[2])


def count_clean(case: Case, grid: TileGrid, tally: Tally) -> None:
    found = check_tiles(case.restored, case.lq, grid, case.scale)
    tally.clean[case.method] += len(grid)
    tally.alarms[case.method] += len(found.bad)
    tally.notes += [
        f"{case.photo}, {case.degradation}, {case.method}: {line}" for line in found.report().splitlines()[1:]
    ]


def count_faults(case: Case, grid: TileGrid, rng: np.random.Generator, each: int, tally: Tally) -> None:
    cells = tile_cells(grid)
    clean = set(check_tiles(case.restored, case.lq, grid, case.scale).bad)
    for fault in FAULTS:
        for index in rng.choice(len(grid), each, replace=False).tolist():
            broken = inject(case.restored, grid, index, fault, seed=index)
            bad = set(check_tiles(broken, case.lq, grid, case.scale).bad)
            change = (cells[index].crop((broken - case.restored).movedim(-1, 0)) * 255).square().mean().sqrt()
            hit, visible = index in bad, not bool(change < VISIBLE)
            tally.faults[fault] += 1
            tally.found[fault] += hit
            tally.visible[fault] += visible
            tally.visible_found[fault] += hit and visible
            tally.others[fault] += len(grid) - 1
            tally.collateral[fault] += len(bad - clean - {index})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=384, help="side of the central squares")
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--overlap", type=int, default=32)
    parser.add_argument("--each", type=int, default=1, help="tiles that get each fault, per image")
    parser.add_argument("--calibration", action="store_true", help="the photos that the limits were chosen on")
    options = parser.parse_args()
    if options.calibration:
        photos = dict(zip(CALIBRATION_PHOTOS, builtin_photos(CALIBRATION_PHOTOS), strict=True))
    else:
        photos = held_out_photos()
    photos = {name: central(photo, options.side) for name, photo in photos.items()}
    tally, rng = Tally(), np.random.default_rng(options.seed)
    for case in cases(photos, Nano.load(), options.seed):
        height, width = case.lq.shape[:2]
        grid = TileGrid(height, width, min(options.tile, height), min(options.tile, width), options.overlap)
        count_clean(case, grid, tally)
        if case.method in FAULTY_METHODS:
            count_faults(case, grid, rng, options.each, tally)
    print("| good tiles of | tiles | false alarms |\n| --- | --- | --- |")
    for method, tiles in tally.clean.items():
        print(f"| {method} | {tiles} | {tally.alarms[method]} |")
    print("\n| fault | tiles | found | visible | of those found | good tiles reported beside it |")
    print("| --- | --- | --- | --- | --- | --- |")
    for fault, tiles in tally.faults.items():
        cells = (tiles, tally.found[fault], tally.visible[fault], tally.visible_found[fault])
        beside = f"{tally.collateral[fault]} of {tally.others[fault]}"
        print(f"| {fault} | {' | '.join(map(str, cells))} | {beside} |")
    print("\nFalse alarms:", *(tally.notes or ["none"]), sep="\n")


if __name__ == "__main__":
    main()
