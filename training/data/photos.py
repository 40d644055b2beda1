"""Clean crops with their prompts, by number."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..engine.batches import SKIPPED, SampleError
from ..engine.method import Samples
from .augment import augment, changes
from .config import DataSettings
from .crop_prompts import read_crop_prompts
from .crops import Crop, cut, draw_crop
from .order import Order
from .reading import PhotoError
from .sources import Source, make_source

ATTEMPTS = 100
"""Photos that are tried for a sample before something is taken to be wrong with all of them."""


class Photos(Samples):
    """Item n is a dictionary, the same whatever was read before and in whichever process:

    * `hq`: float32 `[3, crop, crop]` in [0, 1];
    * `prompt`: str, "" where there is none;
    * `crop_prompt`: str, with `needs_crop_prompts` alone;
    * `name`: str, equal for equal `hq`: the photo's path or place in its archive, its crop, and what changed it;
    * `number`: int, n;
    * `skipped`: list of (name, reason): photos that were drawn before this one and cannot be used, and archives that
      break off. The engine takes it out, says each once and counts them.

    crop: side in pixels in place of that of the settings. needs_prompt: leave out photos without a prompt.
    needs_crop_prompts: take crops that have prompts of their own (crop_prompts.py), with the whole photo's as `prompt`.
    Raises what `make_source` raises.
    """

    def __init__(
        self,
        settings: DataSettings,
        seed: int,
        crop: int | None = None,
        needs_prompt: bool = False,
        needs_crop_prompts: bool = False,
    ):
        self.settings, self.seed, self.crop = settings, seed, crop or settings.crop
        self.needs_prompt, self.needs_crop_prompts = needs_prompt, needs_crop_prompts
        self.found: dict[str, str] = {}
        self.sources: list[Source] = [make_source(each, seed, self.found.setdefault) for each in settings.sources]
        self.broken = list(self.found.items())
        sizes = [len(source) for source in self.sources]
        self.order = Order(sizes, [source.weight for source in settings.sources], seed)
        self.pictures = PictureMemory(settings.memory * 1_000_000)

    def __len__(self) -> int:
        """About as many as there are photos."""
        return len(self.order)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Raises SampleError when many photos in a row cannot be used, with the last reason."""
        skipped = list(self.broken)
        for attempt in range(ATTEMPTS):
            rng = np.random.default_rng((self.seed, number, attempt))
            place = self.order.place(number) if attempt == 0 else self.order.another(rng)
            try:
                return {**self.sample(*place, rng), "number": number, SKIPPED: skipped}
            except PhotoError as error:
                skipped.append((self.sources[place[0]].name(place[1]), str(error)))
                self.found.setdefault(*skipped[-1])
        name, reason = skipped[-1]
        raise SampleError(
            f"{ATTEMPTS} photos in a row cannot be used; {len(self.found)} different ones so far. The last is {name}: "
            f"{reason}"
        )

    @property
    def repeats(self) -> bool:
        """Whether photos come in a few fixed forms, so that what is made of `hq` can be kept by its `name`."""
        return not changes(self.settings.augment) and (self.settings.fixed_crops > 0 or self.needs_crop_prompts)

    def skipped(self) -> dict[str, str]:
        """Photos that this process has left out, and archives that break off, with the reasons."""
        return dict(self.found)

    def sample(self, source_number: int, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A crop of one photo. Raises PhotoError for one that cannot be used."""
        source = self.sources[source_number]
        texts: dict[str, str]
        if self.needs_crop_prompts:
            crop, texts = self.crop_with_prompts(source, index, rng)
        else:
            crop, texts = None, {"prompt": self.prompt(source, index)}
        photo = self.pictures.get((source_number, index), source)
        if crop is not None and not crop.fits(photo.size):
            raise PhotoError(f"its crop prompts are not for a photo of {photo.width}x{photo.height}")
        if crop is None:
            crop = self.draw_crop(source.name(index), photo.size, rng)
        pixels = augment(cut(photo, crop), self.settings.augment, rng)
        name = f"{source.name(index)}#{crop}"
        if changes(self.settings.augment):
            name += f"#{zlib.crc32(pixels.tobytes()):08x}"
        hq = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255
        return {"hq": hq, **texts, "name": name}

    def prompt(self, source: Source, index: int) -> str:
        text = source.text(index, self.settings.prompts)
        if self.needs_prompt and not text:
            what = "is empty" if text is not None else "is missing"
            raise PhotoError(f"its prompt ({self.settings.prompts}) {what}: scripts/caption.py writes it")
        return text or ""

    def crop_with_prompts(self, source: Source, index: int, rng: np.random.Generator) -> tuple[Crop, dict[str, str]]:
        text = source.text(index, self.settings.crop_prompts)
        if text is None:
            raise PhotoError(
                f"its crop prompts ({self.settings.crop_prompts}) are missing: scripts/caption.py writes them"
            )
        prompts = read_crop_prompts(text, self.crop)
        crop, own = prompts.crops[int(rng.integers(len(prompts.crops)))]
        return crop, {"prompt": prompts.prompt, "crop_prompt": own.strip()}

    def draw_crop(self, name: str, size: tuple[int, int], rng: np.random.Generator) -> Crop:
        """A random square, or one of the photo's fixed ones."""
        if self.settings.fixed_crops:
            which = int(rng.integers(self.settings.fixed_crops))
            rng = np.random.default_rng((self.seed, zlib.crc32(name.encode()), which))
        return draw_crop(size, self.crop, self.settings.resize, self.settings.enlarge, rng)


class PictureMemory:
    """The last decoded photos, up to a number of bytes."""

    def __init__(self, size: int):
        self.size, self.used = size, 0
        self._kept: OrderedDict[tuple[int, int], Image.Image] = OrderedDict()

    def get(self, place: tuple[int, int], source: Source) -> Image.Image:
        """The photo at (source, index). Raises PhotoError as the source does."""
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        photo = source.picture(place[1])
        if weight(photo) <= self.size:
            self._kept[place] = photo
            self.used += weight(photo)
        while self.used > self.size:
            self.used -= weight(self._kept.popitem(last=False)[1])
        return photo

    def __getstate__(self) -> dict[str, Any]:
        return {"size": self.size, "used": 0, "_kept": OrderedDict()}


def weight(photo: Image.Image) -> int:
    """Bytes of an RGB picture; Pillow keeps four for a pixel."""
    return 4 * photo.width * photo.height
