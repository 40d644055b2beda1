"""Training pairs for VOSR: clean crops and the same crops degraded and scaled back up.

The batch of a step is a function of (seed, step) alone, so a resumed run sees what an uninterrupted one would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..models.degradation.simple import SimpleDegradation
from ..models.image import BICUBIC, from_bytes, resize_bytes, to_bytes
from . import procedural_images
from .degradations import CameraDegradation, Degradations, Degrade

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
EVALUATION_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png")
"""scikit-image photos kept for benchmarks/nano_quality.py; training never reads them."""
VALIDATION_PHOTOS = ("rocket.jpg",)
"""scikit-image photo that validation during training uses; training never reads it."""
TRAINING_PHOTOS = (
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
    "page.png",
    "text.png",
    "clock_motion.png",
    "color.png",
)


def builtin_photos(names: Sequence[str]) -> list[np.ndarray]:
    """Photos that the scikit-image package itself carries, as uint8 `[H, W, 3]`."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("built-in photos need scikit-image: pip install scikit-image")
    folder = Path(spec.origin).parent / "data"
    return [read_image(folder / name) for name in names]


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 RGB `[H, W, 3]`."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def folder_images(folder: Path) -> list[Path]:
    """Image files under a folder, sorted. Raises FileNotFoundError when there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"no image file ({', '.join(sorted(IMAGE_SUFFIXES))}) under {folder}")
    return found


def procedural_pool(count: int, size: int, seed: int) -> list[np.ndarray]:
    """Procedural images as uint8, made once so that training does not wait for them."""
    images = (procedural_images.make_image(np.random.default_rng((seed, index)), size) for index in range(count))
    return [to_bytes(torch.from_numpy(image)).numpy() for image in images]


def degrade_and_upscale(image: np.ndarray, degradation: Degrade, seed: int) -> np.ndarray:
    """uint8 `[H, W, 3]` degraded, then brought back to its size with PIL bicubic, as inference does."""
    clean = from_bytes(torch.from_numpy(np.ascontiguousarray(image)))
    low = degradation(clean.permute(2, 0, 1)[None], torch.Generator().manual_seed(seed))[0].permute(1, 2, 0)
    height, width = image.shape[:2]
    return resize_bytes(to_bytes(low).contiguous(), width, height, BICUBIC).numpy()


def augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn, mirror and recolour a uint8 crop: few photos have to stand for many."""
    image = np.rot90(image, int(rng.integers(4)))
    if rng.random() < 0.5:
        image = image[:, ::-1]
    if rng.random() < 0.3:
        image = image[..., rng.permutation(3)]
    if rng.random() < 0.6:
        image = recolour(image, rng)
    return np.ascontiguousarray(image)


def recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random contrast and brightness, a little different for each channel; grey photos get a tint."""
    gain = rng.uniform(0.6, 1.15) * (1 + rng.normal(0, 0.1, 3))
    offset = rng.uniform(-0.12, 0.2) + rng.normal(0, 0.05, 3)
    table = np.arange(256)[:, None] / 255 * gain + offset
    table = to_bytes(torch.from_numpy(table)).numpy()
    return np.stack([table[image[..., channel], channel] for channel in range(3)], axis=-1)


def random_window(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A square window of a randomly shrunk image; images smaller than the window are enlarged to it."""
    shortest = min(image.shape[:2])
    factor = max(side / shortest, math.exp(rng.uniform(math.log(0.4), 0)))
    if rng.random() < 0.3 and factor < 1:
        factor = 1.0
    extent = side / factor
    top, left = (float(rng.uniform(0, max(length - extent, 0))) for length in image.shape[:2])
    if factor == 1:
        top, left = round(top), round(left)
        return image[top : top + side, left : left + side]
    box = (left, top, min(left + extent, image.shape[1]), min(top + extent, image.shape[0]))
    return np.array(Image.fromarray(image).resize((side, side), BICUBIC, box=box))


class PairBatches(Dataset):
    """Item n is the batch of step n: (hq, lq), both float `[B, 3, crop, crop]` in [-1, 1].

    Several crops come from one degraded window, because degrading costs more than cropping.
    sources: groups of images (uint8 arrays or files) with the weight each group is drawn by.
    """

    def __init__(
        self,
        sources: Sequence[tuple[float, Sequence[np.ndarray | Path]]],
        degradations: Degradations,
        steps: int,
        batch: int,
        crop: int,
        window: int,
        crops_per_window: int,
        seed: int,
    ):
        if window < crop:
            raise ValueError(f"the degraded window ({window} px) must hold the crop ({crop} px)")
        self.sources = [images for _, images in sources]
        weights = np.array([weight for weight, _ in sources])
        self.weights = weights / weights.sum()
        self.degradations = degradations
        self.steps, self.batch, self.crop = steps, batch, crop
        self.window, self.crops_per_window, self.seed = window, crops_per_window, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, step))
        clean: list[np.ndarray] = []
        degraded: list[np.ndarray] = []
        while len(clean) < self.batch:
            sharp, blurred = self.window_pair(rng)
            for _ in range(min(self.crops_per_window, self.batch - len(clean))):
                top, left = rng.integers(self.window - self.crop + 1, size=2)
                cut = np.s_[top : top + self.crop, left : left + self.crop]
                clean.append(sharp[cut])
                degraded.append(blurred[cut])
        return to_signed(np.stack(clean)), to_signed(np.stack(degraded))

    def window_pair(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        images = self.sources[int(rng.choice(len(self.sources), p=self.weights))]
        chosen = images[int(rng.integers(len(images)))]
        image = read_image(chosen) if isinstance(chosen, Path) else chosen
        sharp = augment(random_window(image, self.window, rng), rng)
        return sharp, degrade_and_upscale(sharp, self.degradations.draw(rng), int(rng.integers(2**31)))


def to_signed(pixels: np.ndarray) -> Tensor:
    """uint8 `[B, H, W, 3]` -> float `[B, 3, H, W]` in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def validation_sets(photos: Sequence[np.ndarray], crop: int, count: int = 32) -> dict[str, tuple[Tensor, Tensor]]:
    """Crops of photos at x2 and x4 with moderate noise and compression, and at x4 through a camera's blur: about
    `count` pairs (hq, lq) of each.

    As PairBatches gives them; the same photos give the same crops.
    """
    degradations: dict[str, Degrade] = {
        f"x{scale}": SimpleDegradation(scale=scale, noise_sigma=12 / 255, jpeg_quality=70) for scale in (2, 4)
    }
    degradations["camera"] = CameraDegradation(scale=4, sigma=(2.0, 2.0), noise_sigma=1 / 255)
    sets = {}
    for name, degradation in degradations.items():
        pairs = [(photo, degrade_and_upscale(photo, degradation, seed=1)) for photo in photos]
        crops = [pair for photo, lq in pairs for pair in grid_crops(photo, lq, crop)]
        hq, lq = zip(*crops[:: max(1, len(crops) // count)], strict=True)
        sets[name] = (to_signed(np.stack(hq)), to_signed(np.stack(lq)))
    return sets


def grid_crops(photo: np.ndarray, lq: np.ndarray, crop: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Aligned square crops of both images, side by side."""
    rows, columns = (range(0, side - crop + 1, crop) for side in photo.shape[:2])
    cuts = [np.s_[y : y + crop, x : x + crop] for y in rows for x in columns]
    return [(photo[cut], lq[cut]) for cut in cuts]
