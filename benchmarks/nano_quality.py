"""VOSR nano against bicubic enlargement on photos that its training never read.

    python3 dev/host_env.py run -- benchmarks/nano_quality.py                        (full photos, one step)
    python3 dev/host_env.py run -- benchmarks/nano_quality.py --side 192 --steps 25  (central crops, and 25 steps too)

Each photo is shrunk (x2, x4), gets Gaussian noise of sigma 5 to 20 levels and JPEG compression of quality 50 to 90,
both drawn from the seed, and is brought back to its size by Pillow's bicubic. One step runs the full condition alone
(guidance 1) and gives the posterior mean; several steps are guided with --guidance. PSNR and SSIM are those of
scikit-image, on 8-bit RGB. Targets: x2 mean PSNR at least 1.0 dB above bicubic and SSIM above it; x4 PSNR above it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from _pack import ROOT, load_pack
from _scores import Score

load_pack()
from oracles.vosr import Condition, Velocity, sample  # noqa: E402
from realisr.models.degradation.simple import SimpleDegradation  # noqa: E402
from realisr.models.image import BICUBIC, from_bytes, resize_bytes, to_bytes  # noqa: E402
from realisr.models.tiles.grid import vosr_tile_grid  # noqa: E402
from realisr.models.vosr.dit import VOSRDiT  # noqa: E402
from realisr.models.vosr.pixel_vae import PixelUnshuffleVAE  # noqa: E402
from realisr.models.vosr.sampling import RestorationGuidance, euler_times  # noqa: E402
from realisr.training.data.builtin import EVALUATION_PHOTOS, builtin_photos  # noqa: E402
from realisr.training.vosr.weights import load_model  # noqa: E402

WEIGHTS = ROOT / "weights" / "vosr_nano.safetensors"
SCALES = (2, 4)
NOISE = (5.0, 20.0)
QUALITY = (50, 90)
OVERLAP = 16


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 RGB `[H, W, 3]`."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def to_signed(pixels: np.ndarray) -> Tensor:
    """uint8 `[B, H, W, 3]` -> float `[B, 3, H, W]` in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def degrade_and_upscale(image: np.ndarray, degradation: SimpleDegradation, seed: int) -> np.ndarray:
    """uint8 `[H, W, 3]` degraded, then brought back to its size with PIL bicubic, as inference does."""
    clean = from_bytes(torch.from_numpy(np.ascontiguousarray(image)))
    low = degradation(clean.permute(2, 0, 1)[None], torch.Generator().manual_seed(seed))[0].permute(1, 2, 0)
    height, width = image.shape[:2]
    return resize_bytes(to_bytes(low).contiguous(), width, height, BICUBIC).numpy()


@dataclass(frozen=True)
class Result:
    """Scores of one photo."""

    photo: str
    scale: int
    noise: float
    """Standard deviation in levels of 255."""
    quality: int
    """Of JPEG."""
    scores: dict[str, Score]
    """By method: `bicubic`, `1 step`, ..."""

    def gain(self, method: str = "1 step") -> float:
        """dB above bicubic."""
        return self.scores[method].psnr - self.scores["bicubic"].psnr


@dataclass(frozen=True)
class Nano:
    """The bundled network with its latent space."""

    network: VOSRDiT
    vae: PixelUnshuffleVAE

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Nano:
        args, network = load_model(path)
        return cls(network.eval(), PixelUnshuffleVAE(args["ae_downscale"], args["ae_scale"]))

    def restore(self, lq: np.ndarray, seed: int, steps: int, guidance: float) -> np.ndarray:
        """uint8 `[H, W, 3]` (sides multiples of 4), already at its final size, restored in tiles of 64 pixels."""
        latent = self.vae.encode(to_signed(lq[None]))
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
        side = self.network.config.train_latent_size * self.vae.downscale
        grid = vosr_tile_grid(latent.shape[-2], latent.shape[-1], side, OVERLAP, self.vae.downscale)
        velocity = Velocity(self.network, RestorationGuidance(guidance))
        restored = sample(velocity, noise, Condition(latent, None), euler_times(steps), grid)
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


def evaluate(
    nano: Nano, photos: dict[str, np.ndarray], scales: Sequence[int], seed: int, steps: int, guidance: float = 1.0
) -> list[Result]:
    """Scores of bicubic, of one step and, when `steps` is above 1, of that many steps under `guidance`."""
    results = []
    for index, (name, photo) in enumerate(photos.items()):
        for scale in scales:
            rng = np.random.default_rng((seed, index, scale))
            noise, quality = rng.uniform(*NOISE), int(rng.integers(QUALITY[0], QUALITY[1] + 1))
            degradation = SimpleDegradation(scale, noise_sigma=noise / 255, jpeg_quality=quality)
            lq = degrade_and_upscale(photo, degradation, seed)
            images = {"bicubic": lq, "1 step": nano.restore(lq, seed, 1, guidance=1.0)}
            if steps > 1:
                images[f"{steps} steps"] = nano.restore(lq, seed, steps, guidance)
            scores = {method: Score.of(image, photo) for method, image in images.items()}
            results.append(Result(name, scale, noise, quality, scores))
    return results


def table(results: Sequence[Result]) -> str:
    """A Markdown table, one row a photo and a mean for each scale."""
    methods = list(results[0].scores)
    heads = ["photo", "scale", "noise", "JPEG", *(f"{name} {kind}" for name in methods for kind in ("PSNR", "SSIM"))]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for scale in sorted({result.scale for result in results}):
        rows = [result for result in results if result.scale == scale]
        for row in rows:
            lines.append(line(row.photo, scale, f"{row.noise:.1f}", str(row.quality), list(row.scores.values())))
        means = [mean_score([row.scores[method] for row in rows]) for method in methods]
        lines.append(line("**mean**", scale, "", "", means))
    return "\n".join(lines)


def mean_score(scores: Sequence[Score]) -> Score:
    return Score(float(np.mean([score.psnr for score in scores])), float(np.mean([score.ssim for score in scores])))


def line(photo: str, scale: int, noise: str, quality: str, scores: Sequence[Score]) -> str:
    cells = [f"{value:.{digits}f}" for score in scores for value, digits in ((score.psnr, 2), (score.ssim, 4))]
    return "| " + " | ".join([photo, f"x{scale}", noise, quality, *cells]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=0, help="evaluate central crops of this side; 0: whole photos")
    parser.add_argument("--steps", type=int, default=1, help="also report this many steps")
    parser.add_argument("--guidance", type=float, default=1.0, help="restoration scale s of those steps")
    options = parser.parse_args()
    photos = {name: central(photo, options.side) for name, photo in held_out_photos().items()}
    results = evaluate(Nano.load(options.weights), photos, SCALES, options.seed, options.steps, options.guidance)
    print(table(results))
    for scale in SCALES:
        gains = [result.gain() for result in results if result.scale == scale]
        print(f"x{scale}: one step is {np.mean(gains):+.2f} dB on bicubic in the mean, {min(gains):+.2f} at worst")


if __name__ == "__main__":
    main()
