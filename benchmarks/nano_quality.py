"""VOSR nano against bicubic enlargement on photos that its training never read.

    python3 dev/host_env.py run -- benchmarks/nano_quality.py                                 (four tests, whole photos)
    python3 dev/host_env.py run -- benchmarks/nano_quality.py --seed 1 --tests "simple x2"    (one of them, other draws)

Each photo is degraded, brought back to its size by Pillow's bicubic, and restored in one step, all drawn from the seed:

    simple x2, simple x4   shrunk; Gaussian noise of sigma 5 to 20 levels; JPEG of quality 50 to 90
    real-world x4          the second-order degradation of models/degradation/real_world.py
    camera x4              Gaussian blur of sigma 1.6 to 2.4 pixels of the sharp photo, shrunk; noise of sigma 1 level

PSNR and SSIM are those of scikit-image on 8-bit RGB; of the camera test on the luma (BT.601), as benchmarks of real
camera pairs count them. Targets, in the mean over the photos: simple x2 at least 2.0 dB above bicubic, simple x4 and
real-world x4 1.2 dB, camera x4 0.4 dB and 0.025 SSIM; SSIM above bicubic on every photo.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from skimage.color import rgb2ycbcr
from torch import Tensor

from _pack import ROOT, load_pack
from _scores import Score

load_pack()
from oracles.vosr import Condition, Velocity, sample  # noqa: E402
from realisr.models.degradation.real_world import RealWorldDegradation  # noqa: E402
from realisr.models.degradation.simple import SimpleDegradation  # noqa: E402
from realisr.models.image import to_bytes  # noqa: E402
from realisr.models.tiles.grid import vosr_tile_grid  # noqa: E402
from realisr.models.vosr.dit import VOSRDiT  # noqa: E402
from realisr.models.vosr.pixel_vae import PixelUnshuffleVAE  # noqa: E402
from realisr.models.vosr.sampling import RestorationGuidance, euler_times  # noqa: E402
from realisr.training.data import EVALUATION_PHOTOS, builtin_photos, degrade_and_upscale, read_image, to_signed  # noqa: E402
from realisr.training.degradations import Degrade  # noqa: E402
from realisr.training.vosr_weights import load_model  # noqa: E402

WEIGHTS = ROOT / "weights" / "vosr_nano.safetensors"
NOISE = (5.0, 20.0)
QUALITY = (50, 90)
CAMERA_BLUR = (1.6, 2.4)
OVERLAP = 16


@dataclass(frozen=True)
class Test:
    """One way to degrade photos."""

    draw: Callable[[np.random.Generator], tuple[Degrade, str]]
    """A degradation and its strengths in words."""
    luma: bool = False
    """Whether scores are those of the luma."""


def draw_simple(scale: int) -> Callable[[np.random.Generator], tuple[Degrade, str]]:
    def draw(rng: np.random.Generator) -> tuple[Degrade, str]:
        noise, quality = rng.uniform(*NOISE), int(rng.integers(QUALITY[0], QUALITY[1] + 1))
        degradation = SimpleDegradation(scale, noise_sigma=noise / 255, jpeg_quality=quality)
        return degradation, f"noise {noise:.1f}, JPEG {quality}"

    return draw


def draw_camera(rng: np.random.Generator) -> tuple[Degrade, str]:
    blur = rng.uniform(*CAMERA_BLUR)
    return SimpleDegradation(4, blur_sigma=blur, noise_sigma=1 / 255), f"blur {blur:.2f}"


TESTS = {
    "simple x2": Test(draw_simple(2)),
    "simple x4": Test(draw_simple(4)),
    "real-world x4": Test(lambda rng: (RealWorldDegradation(4), "random")),
    "camera x4": Test(draw_camera, luma=True),
}


@dataclass(frozen=True)
class Result:
    """Scores of one photo."""

    test: str
    """Key of TESTS."""
    photo: str
    degradation: str
    """Its strengths in words."""
    bicubic: Score
    restored: Score

    @property
    def psnr_gain(self) -> float:
        """dB above bicubic."""
        return self.restored.psnr - self.bicubic.psnr

    @property
    def ssim_gain(self) -> float:
        return self.restored.ssim - self.bicubic.ssim


@dataclass(frozen=True)
class Nano:
    """The bundled network with its latent space."""

    network: VOSRDiT
    vae: PixelUnshuffleVAE

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Nano:
        args, network = load_model(path)
        return cls(network.eval(), PixelUnshuffleVAE(args["ae_downscale"], args["ae_scale"]))

    def restore(self, lq: np.ndarray, seed: int) -> np.ndarray:
        """uint8 `[H, W, 3]` (sides multiples of 4), already at its final size, restored in tiles in one step."""
        latent = self.vae.encode(to_signed(lq[None]))
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
        side = self.network.config.train_latent_size * self.vae.downscale
        grid = vosr_tile_grid(latent.shape[-2], latent.shape[-1], side, OVERLAP, self.vae.downscale)
        velocity = Velocity(self.network, RestorationGuidance(1.0))
        restored = sample(velocity, noise, Condition(latent, None), euler_times(1), grid)
        return to_pixels(self.vae.decode(restored))


def to_pixels(image: Tensor) -> np.ndarray:
    """`[1, 3, H, W]` in [-1, 1] -> uint8 `[H, W, 3]`."""
    return to_bytes(image[0] / 2 + 0.5).permute(1, 2, 0).numpy()


def held_out_photos() -> dict[str, np.ndarray]:
    """The photos by name, uint8 `[H, W, 3]`; from scikit-image, scikit-learn and matplotlib."""
    photos = dict(zip(EVALUATION_PHOTOS, builtin_photos(EVALUATION_PHOTOS), strict=True))
    for package, folder, names in (
        ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
        ("matplotlib", "mpl-data/sample_data", ("grace_hopper.jpg",)),
    ):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"the evaluation photos {', '.join(names)} come with {package}: install it")
        photos.update({name: read_image(Path(spec.origin).parent / folder / name) for name in names})
    return photos


def central(photo: np.ndarray, side: int) -> np.ndarray:
    """The central square of `side` pixels, or the whole for 0; sides cut to multiples of 8."""
    height, width = (min(length, side or length) // 8 * 8 for length in photo.shape[:2])
    top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    return photo[top : top + height, left : left + width]


def luma(image: np.ndarray) -> np.ndarray:
    """uint8 `[H, W, 3]` -> the 8-bit luma of BT.601 (16 to 235) as `[H, W]`."""
    return rgb2ycbcr(image)[..., 0].round().astype(np.uint8)


def score(image: np.ndarray, photo: np.ndarray, of_luma: bool) -> Score:
    if not of_luma:
        return Score.of(image, photo)
    # One channel three times has the scores of that channel.
    return Score.of(*(np.repeat(luma(pixels)[..., None], 3, axis=-1) for pixels in (image, photo)))


def evaluate(nano: Nano, photos: dict[str, np.ndarray], tests: Sequence[str], seed: int) -> list[Result]:
    """Scores of bicubic and of one step, test after test."""
    results = []
    for name in tests:
        test = TESTS[name]
        for index, (photo_name, photo) in enumerate(photos.items()):
            rng = np.random.default_rng((seed, index, 2 if name.endswith("x2") else 4))
            degradation, words = test.draw(rng)
            lq = degrade_and_upscale(photo, degradation, seed)
            restored = nano.restore(lq, seed)
            scores = (score(lq, photo, test.luma), score(restored, photo, test.luma))
            results.append(Result(name, photo_name, words, *scores))
    return results


def mean(scores: Sequence[Score]) -> Score:
    return Score(float(np.mean([one.psnr for one in scores])), float(np.mean([one.ssim for one in scores])))


def table(results: Sequence[Result]) -> str:
    """A Markdown table, one row a photo and a mean for each test."""
    heads = ["test", "photo", "degradation", "bicubic PSNR", "SSIM", "nano PSNR", "SSIM", "gain dB", "SSIM"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name in dict.fromkeys(result.test for result in results):
        rows = [result for result in results if result.test == name]
        lines += [line(row) for row in rows]
        averages = (mean([row.bicubic for row in rows]), mean([row.restored for row in rows]))
        lines.append(line(Result(name, "**mean**", "", *averages)))
    return "\n".join(lines)


def line(row: Result) -> str:
    scores = [
        f"{value:.{digits}f}" for one in (row.bicubic, row.restored) for value, digits in ((one.psnr, 2), (one.ssim, 4))
    ]
    gains = [f"{row.psnr_gain:+.2f}", f"{row.ssim_gain:+.4f}"]
    return "| " + " | ".join([row.test, row.photo, row.degradation, *scores, *gains]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=0, help="evaluate central crops of this side; 0: whole photos")
    parser.add_argument("--tests", nargs="+", choices=list(TESTS), default=list(TESTS), metavar="TEST")
    options = parser.parse_args()
    photos = {name: central(photo, options.side) for name, photo in held_out_photos().items()}
    results = evaluate(Nano.load(options.weights), photos, options.tests, options.seed)
    print(table(results))
    for name in options.tests:
        rows = [row for row in results if row.test == name]
        psnr, ssim = [row.psnr_gain for row in rows], [row.ssim_gain for row in rows]
        print(
            f"{name}: {np.mean(psnr):+.2f} dB and {np.mean(ssim):+.4f} SSIM on bicubic in the mean, "
            f"{min(psnr):+.2f} and {min(ssim):+.4f} at worst"
        )


if __name__ == "__main__":
    main()
