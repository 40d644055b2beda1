"""Photos for the training experiments: scikit-image's to train on, six others held out."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

TRAIN = (
    "motorcycle_left.png",
    "motorcycle_right.png",
    "camera.png",
    "brick.png",
    "grass.png",
    "gravel.png",
    "coins.png",
    "moon.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "rocket.jpg",
)
"""scikit-image's; without its drawings and text."""
HELD_OUT = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
"""(package, file); no experiment trains on them."""


def package_file(package: str, name: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name} comes with {package}: install it (scikit-learn for sklearn)")
    return Path(spec.origin).parent / name


def read(path: Path, short_side: int) -> Tensor:
    """A photo `[3, H, W]` in [0, 1], shrunk to that shorter side."""
    with Image.open(path) as image:
        photo = image.convert("RGB")
    factor = short_side / min(photo.size)
    size = [max(short_side, round(side * factor)) for side in photo.size]
    array = np.array(photo.resize((size[0], size[1]), Image.Resampling.LANCZOS))
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


def training_photos(short_side: int) -> list[Tensor]:
    return [read(package_file("skimage", f"data/{name}"), short_side) for name in TRAIN]


def held_out_photos(short_side: int) -> dict[str, Tensor]:
    return {Path(name).name: read(package_file(package, name), short_side) for package, name in HELD_OUT}


def random_crops(photos: Sequence[Tensor], count: int, side: int, rng: np.random.Generator) -> Tensor:
    """`[count, 3, side, side]`: crops of photos drawn at random, turned, mirrored, channels permuted."""
    crops = []
    for _ in range(count):
        photo = photos[rng.integers(len(photos))]
        top, left = (rng.integers(length - side + 1) for length in photo.shape[1:])
        crop = photo[:, top : top + side, left : left + side].rot90(int(rng.integers(4)), (1, 2))
        crops.append((crop.flip(2) if rng.random() < 0.5 else crop)[torch.from_numpy(rng.permutation(3))])
    return torch.stack(crops)


def fixed_crops(photo: Tensor, count: int, side: int) -> Tensor:
    """`count` crops of a photo at fixed places, evenly spread along its diagonal."""
    places = [[round(i * (length - side) / max(1, count - 1)) for i in range(count)] for length in photo.shape[1:]]
    return torch.stack([photo[:, y : y + side, x : x + side] for y, x in zip(*places, strict=True)])


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """dB of each image `[B, 3, H, W]` in [0, 1]."""
    return -10 * (images.clamp(0, 1) - reference).square().flatten(1).mean(dim=1).log10()
