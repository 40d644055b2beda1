"""Drift of meaning (models/drift.py) on made examples: how far restorations drift, and how far ones that lie do.

    python3 dev/host_env.py run -- benchmarks/drift.py

The central square of each photo is degraded as in benchmarks/tile_check.py. Faithful results are bicubic, VOSR nano in
one step, the original, the original sharpened, and the original with an even tint. Results that lie are the original
with something that was not there, or is there no more: a face (from another photo) of a fifth of the side pasted
elsewhere; a part of the size of that face replaced by another part, or smoothed away; the picture mirrored; and, on two
pictures of text, words replaced by others. Printed: the drift of each kind, and which share would be vetoed at some
limits.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from _pack import load_pack

load_pack()
from nano_quality import Nano, central, held_out_photos  # noqa: E402
from tile_check import DEGRADATIONS, as_image  # noqa: E402

from realisr.models.drift import Drift, measure_drift  # noqa: E402
from realisr.models.image import gaussian_blur, to_bytes, upscale  # noqa: E402

FACE = ("astronaut.png", slice(60, 190), slice(165, 280))
"""A face in a photo: rows and columns."""
LIMITS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5)
FAITHFUL = ("bicubic", "VOSR nano", "original", "sharpened", "tinted")
WORDS = ("EXIT", "OPEN", "2041", "9375")


def pasted(image: Tensor, patch: Tensor, top: int, left: int) -> Tensor:
    """A copy of `[1, H, W, 3]` with a patch laid in, its border softened over an eighth."""
    height, width = patch.shape[1:3]
    edge = [1 - (torch.linspace(-1, 1, side).abs() - 0.75).clamp(min=0) * 4 for side in (height, width)]
    weight = (edge[0][:, None] * edge[1][None])[None, ..., None]
    out = image.clone()
    place = out[:, top : top + height, left : left + width]
    place.copy_(place + weight * (patch - place))
    return out


def lettered(image: Tensor, words: tuple[str, str]) -> Tensor:
    """A copy of `[1, H, W, 3]` with two words in boxes."""
    canvas = Image.fromarray(to_bytes(image[0]).numpy())
    brush, side = ImageDraw.Draw(canvas), min(canvas.size)
    font = ImageFont.load_default(size=side / 8)
    for number, word in enumerate(words):
        place = (side * 0.25, side * (0.3 + 0.35 * number))
        brush.rectangle(brush.textbbox(place, word, font=font), fill=(245, 245, 240))
        brush.text(place, word, fill=(20, 20, 30), font=font)
    return as_image(np.array(canvas))


def results(name: str, photo: Tensor, lq: Tensor, face: Tensor, nano: Nano, rng: np.random.Generator) -> Iterator:
    """(kind, result) of an original `[1, H, W, 3]` whose enlarged low-quality image is `lq`."""
    height, width = photo.shape[1:3]
    yield "bicubic", lq
    yield "VOSR nano", as_image(nano.restore(to_bytes(lq[0]).numpy(), 0, 1, guidance=1.0))
    yield "original", photo
    low = gaussian_blur(photo.movedim(-1, 1), 2.0, 6).movedim(1, -1)
    yield "sharpened", (2 * photo - low).clamp(0, 1)
    yield "tinted", (photo + torch.tensor([0.06, 0.0, -0.06])).clamp(0, 1)
    side = min(height, width) // 5
    small = upscale(face, side, side)
    top, left = (int(rng.integers(0, length - side)) for length in (height, width))
    if name != FACE[0]:
        yield "face pasted", pasted(photo, small, top, left)
    elsewhere = ((top + height // 2) % (height - side), (left + width // 2) % (width - side))
    other = photo[:, elsewhere[0] : elsewhere[0] + side, elsewhere[1] : elsewhere[1] + side]
    yield "part replaced", pasted(photo, other, top, left)
    place = photo[:, top : top + side, left : left + side]
    smooth = gaussian_blur(place.movedim(-1, 1), side / 4, side).movedim(1, -1)
    yield "part smoothed away", pasted(photo, smooth, top, left)
    yield "mirrored", photo.flip(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=256)
    options = parser.parse_args()
    whole = held_out_photos()
    face = as_image(whole[FACE[0]][FACE[1], FACE[2]])
    nano, rng = Nano.load(), np.random.default_rng(options.seed)
    drifts: dict[str, list[Drift]] = defaultdict(list)
    for index, (name, photo) in enumerate((name, as_image(central(p, options.side))) for name, p in whole.items()):
        pictures = {"": photo}
        if index < 2:
            pictures["text"] = lettered(photo, WORDS[:2])
        for content, picture in pictures.items():
            height, width = picture.shape[1:3]
            for degradation in DEGRADATIONS.values():
                low = degradation(picture.movedim(-1, 1), torch.Generator().manual_seed(options.seed + index))
                low = low.movedim(1, -1).contiguous()
                if content:
                    drifts["text kept"].append(measure_drift(picture[0], low[0]))
                    drifts["text replaced"].append(measure_drift(lettered(photo, WORDS[2:])[0], low[0]))
                    continue
                lq = upscale(low, width, height)
                for kind, result in results(name, picture, lq, face, nano, rng):
                    drifts[kind].append(measure_drift(result[0], low[0]))
    heads = ["result", "cases", "low median", "low max", "edges median", "edges max"]
    print("| " + " | ".join([*heads, *(f"vetoed at {limit:g}" for limit in LIMITS)]) + " |")
    print("| --- " * (len(heads) + len(LIMITS)) + "|")
    for kind, found in drifts.items():
        low, edges = np.array([drift.low for drift in found]), np.array([drift.edges for drift in found])
        values = np.maximum(low, edges)
        shares = [f"{np.mean(values > limit):.0%}" for limit in LIMITS]
        numbers = [f"{value:.2f}" for value in (np.median(low), low.max(), np.median(edges), edges.max())]
        print("| " + " | ".join([kind, str(len(found)), *numbers, *shares]) + " |")


if __name__ == "__main__":
    main()
