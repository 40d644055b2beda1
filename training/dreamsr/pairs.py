"""Pairs of clean and detail-erased crops for the texture stage (arXiv 2605.15682): FLUX, image to image.

A clean crop is shrunk and enlarged again, encoded, given noise of a drawn strength, and denoised from there by FLUX
with the crop's prompt and a negative one added to it, so that things stay and fine detail is lost. The paper states the
strength alone (0.3 to 0.5); how far the crop is shrunk, the number of steps and the words of P_neg are our choice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from ...models.image import to_levels, upscale
from ..data.config import DataSettings
from ..data.photos import Photos
from ..engine.config import Count, Settings, UserPath
from ..engine.draws import Draws
from ..engine.files import write_atomically
from ..flow import noisy
from ..flux.autoencoder import load_autoencoder
from ..flux.config import DTYPES, ModelFiles, model_file
from ..flux.encoders import TextEncoders
from ..flux.quantise import quantise
from ..flux.transformer import load_transformer
from .config import Factor
from .decoder import LatentDecoder, encode
from .flux import ControlledFlux, Prompts
from .samples import ERASED_SUFFIX, HQ_SUFFIX, RECORD_SUFFIX

STATED = "settings.json"
"""What a folder's pairs were made with."""
FREE_TO_CHANGE = {"out", "count", "batch", "base", "encoders"}
MOST_FAILURES = 20
"""One after another, before a call gives up."""
DRAWS = 2
"""Beside the seed, of a pair's draws: others than those that choose its crop."""


class PairsConfig(Settings):
    """Pairs to be made; the defaults are the paper's where it states them."""

    out: UserPath
    """Folder of the pairs: NUMBER.hq.png, NUMBER.erased.png and NUMBER.pair.json."""
    count: PositiveInt
    """Pair n is of the photos' sample n, whatever was made before."""
    seed: Count = 0
    batch: PositiveInt = 1
    """Pairs that are made together."""
    data: DataSettings
    """Its crops are those of the run that the pairs are for; its degradation is not used."""
    models: ModelFiles
    base: Literal["full", "int8", "nf4"] = "full"
    """How FLUX's weights are kept: in `precision`, or quantised by bitsandbytes (a GPU)."""
    precision: Literal["bf16", "fp32"] = "bf16"
    patch_prompts: bool = True
    """Whether P_img is the crop's own prompt, in the photos' .crops.json; false: the photo's."""
    negative: str = "blurry, smooth, flat surfaces, low detail, out of focus, lacking texture"
    """P_neg: added to P_img, for FLUX.1-dev has no guidance against a prompt."""
    shrink: PositiveInt = 4
    """Factor by which the crop is shrunk, and enlarged again, before it is encoded; 1: not at all."""
    strength: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.3, 0.5)
    """Range of t from which FLUX denoises."""
    steps: PositiveInt = 12
    """Euler steps from there to 0."""
    guidance: Factor = 3.5
    prompt_tokens: PositiveInt = 256
    encoders: Literal["device", "main memory"] = "main memory"

    @model_validator(mode="after")
    def fitting(self) -> PairsConfig:
        if self.strength[0] > self.strength[1]:
            raise ValueError(f"strength: {self.strength[0]} is above {self.strength[1]}")
        if self.data.crop % self.shrink:
            raise ValueError(f"shrink is {self.shrink}, which does not divide data.crop, {self.data.crop}")
        return self


class GaveUp(Exception):
    """So many pairs failed one after another that something is wrong with all."""


@dataclass
class Report:
    """What a call made."""

    made: int = 0
    already: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    """Number -> reason."""
    in_a_row: int = 0
    """Failures since the last pair that was made."""

    def fail(self, number: int, reason: str) -> None:
        """Raises GaveUp where nothing works any more."""
        self.failed[number] = reason
        self.in_a_row += 1
        if self.in_a_row >= MOST_FAILURES:
            raise GaveUp(f"{self.in_a_row} pairs in a row cannot be made; the last, {number}: {reason}")


class PairMaker:
    """FLUX with what goes around it, ready to erase detail."""

    def __init__(self, config: PairsConfig, device: torch.device):
        """Raises ValueError for settings and files that cannot work, FileNotFoundError for a missing one."""
        self.config, self.device = config, device
        dtype, files = DTYPES[config.precision], config.models
        self.autoencoder = load_autoencoder(model_file(files, "vae", "vae"), device, dtype)
        if config.data.crop % (2 * self.autoencoder.cell):
            raise ValueError(f"data.crop is {config.data.crop}; it must be a multiple of {2 * self.autoencoder.cell}")
        self.decoder = LatentDecoder(self.autoencoder)
        transformer: Any = load_transformer(files.flux, torch.device("cpu"), dtype)
        self.flux = ControlledFlux(quantise(transformer, config.base, device), None, ())
        tokenizers = model_file(files, "tokenizers", "tokenizer_2")
        rest = device if config.encoders == "device" else torch.device("cpu")
        t5, clip = model_file(files, "t5", "text_encoder_2"), model_file(files, "clip", "text_encoder")
        self.text = TextEncoders(t5, clip, tokenizers, device, dtype, config.prompt_tokens, rest)

    @torch.no_grad()
    def erase(self, hq: Tensor, prompts: Sequence[str], draws: Sequence[Draws]) -> tuple[Tensor, list[float]]:
        """Crops `[B, 3, H, W]` in [0, 1] -> (erased crops in 8-bit levels, the strengths), a Draws for each."""
        config = self.config
        low, high = config.strength
        strengths = torch.cat([low + (high - low) * each.uniform(1) for each in draws])
        latent = encode(self.autoencoder, shrunk(hq, config.shrink))
        noise = torch.cat([each.normal(1, *latent.shape[1:]) for each in draws])
        tokens, pooled = self.text.encode([with_negative(prompt, config.negative) for prompt in prompts])
        guidance = torch.full_like(strengths, config.guidance)
        x = noisy(latent, noise, strengths)
        for step in range(config.steps):
            t = strengths * (1 - step / config.steps)
            velocity = self.flux(x, t, Prompts(tokens, pooled), guidance, None)
            x = x - (strengths / config.steps).view(-1, 1, 1, 1) * velocity
        return to_levels((self.decoder(x) + 1) / 2), strengths.tolist()


def shrunk(images: Tensor, factor: int) -> Tensor:
    """`[B, 3, H, W]` made smaller by the factor and enlarged again, bicubic and antialiased."""
    if factor == 1:
        return images
    height, width = images.shape[-2:]
    small = upscale(images.movedim(1, -1), width // factor, height // factor)
    return upscale(small, width, height).movedim(-1, 1)


def with_negative(prompt: str, negative: str) -> str:
    """P_img + P_neg as one text."""
    return f"{prompt.rstrip().rstrip('.')}. {negative}" if negative else prompt


def make_pairs(config: PairsConfig, device: torch.device, maker: PairMaker | None = None) -> Iterator[Report]:
    """Make the pairs that are not there; after each batch what was done so far.

    A killed call leaves whole pairs; the next goes on. A pair that cannot be made is counted and left out, and tried
    again by the next call. Raises ValueError when the folder's pairs were made with other settings, OSError for a full
    or forbidden disk, GaveUp after MOST_FAILURES failures in a row.
    """
    state_settings(config)
    report = Report()
    numbers = [number for number in range(config.count) if not is_whole(config.out, number)]
    report.already = config.count - len(numbers)
    yield report
    if not numbers:
        return
    photos = Photos(
        config.data, config.seed, needs_prompt=not config.patch_prompts, needs_crop_prompts=config.patch_prompts
    )
    maker = maker or PairMaker(config, device)
    for start in range(0, len(numbers), config.batch):
        make_batch(maker, photos, numbers[start : start + config.batch], report)
        yield report


def make_batch(maker: PairMaker, photos: Photos, numbers: Sequence[int], report: Report) -> None:
    """Make some pairs at once; where that fails, one by one, so that one fails alone."""
    try:
        items = [photos[number] for number in numbers]
        results = list(pairs_of(maker, items))
    except (RuntimeError, ValueError) as error:
        if len(numbers) == 1:
            report.fail(numbers[0], " ".join(str(error).split())[:200])
            return
        for number in numbers:
            make_batch(maker, photos, [number], report)
        return
    for number, item, (erased, strength) in zip(numbers, items, results, strict=True):
        if not torch.isfinite(erased).all():
            report.fail(number, "FLUX or its autoencoder gave values that are no numbers")
            continue
        record = {
            "prompt": item["prompt"],
            "crop_prompt": item.get("crop_prompt", item["prompt"]),
            "name": item["name"],
            "strength": strength,
        }
        write_pair(maker.config.out, number, item["hq"], erased, record)
        report.made += 1
        report.in_a_row = 0


def pairs_of(maker: PairMaker, items: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Tensor, float]]:
    hq = torch.stack([item["hq"] for item in items]).to(maker.device)
    draws = [Draws((maker.config.seed, DRAWS), item["number"], maker.device) for item in items]
    erased, strengths = maker.erase(hq, [item.get("crop_prompt", item["prompt"]) for item in items], draws)
    yield from zip(erased.cpu(), strengths, strict=True)


def write_pair(folder: Path, number: int, hq: Tensor, erased: Tensor, record: Mapping[str, Any]) -> None:
    stem = folder / f"{number:08d}"
    for suffix, image in ((HQ_SUFFIX, hq), (ERASED_SUFFIX, erased)):
        picture = Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy())
        write_atomically(with_suffix(stem, suffix), partial(picture.save, format="PNG"))
    text = json.dumps(record, ensure_ascii=False) + "\n"
    write_atomically(with_suffix(stem, RECORD_SUFFIX), lambda path: path.write_text(text, encoding="utf-8"))


def with_suffix(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def is_whole(folder: Path, number: int) -> bool:
    stem = folder / f"{number:08d}"
    return all(with_suffix(stem, suffix).is_file() for suffix in (HQ_SUFFIX, ERASED_SUFFIX, RECORD_SUFFIX))


def state_settings(config: PairsConfig) -> None:
    """Note what the pairs are made with. Raises ValueError when the folder has others."""
    stated = config.model_dump(mode="json", exclude=FREE_TO_CHANGE)
    file = config.out / STATED
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [key for key in stated if stated[key] != before.get(key)]
        if changed:
            raise ValueError(
                f"{config.out} holds pairs made with another {' and '.join(changed)}. Set `out` to a new folder, or "
                "use the settings of that one."
            )
        return
    text = json.dumps(stated, indent=1) + "\n"
    write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))
