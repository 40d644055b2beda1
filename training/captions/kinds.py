"""What is asked about a photo for each kind of training text, and the files that are made of the answers."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...services.vlm.answers import read_fields, within
from ...services.vlm.patch_prompts import PatchCaptioning
from ...services.vlm.protocol import Picture, Question
from ...services.vlm.questions import Style, caption_question, instruction
from ..data.config import DataSettings
from ..data.crop_prompts import CropPrompts
from ..data.crops import Crop, cut, draw_crop
from ..data.degradations import Degradations
from ..data.reading import photo_size, read_photo
from ..data.sources import sidecar
from ..engine.draws import Draws
from ..engine.files import write_atomically


@dataclass(frozen=True)
class Photo:
    """A photo to be described."""

    path: Path
    folder: Path
    """The folder it was found under: its place in it seeds what is drawn, so a folder may be moved."""

    @property
    def number(self) -> int:
        """Stands for the photo in seeds: 31 bits, which fit everywhere."""
        return zlib.crc32(self.path.relative_to(self.folder).as_posix().encode()) >> 1


@dataclass(frozen=True)
class Options:
    """How photos are described."""

    data: DataSettings
    """Crops and degradation are those of training."""
    seed: int = 0
    clean: bool = False
    """Show the photo as it is in place of a degraded one."""
    side: int = 2048
    """A larger photo is shrunk to this longer side before it is degraded as a whole, pixels."""
    max_length: int = 1500
    """Of a text, characters."""
    crops: int = 1
    """Of a photo, for the kinds that describe crops."""
    instruction: str = ""
    """In place of the pack's own, where not blank: of a caption, tags, or a crop."""


class Kind(ABC):
    """One kind of text. `ask` and `write` are called for one photo after another, perhaps in different threads."""

    def __init__(self, options: Options):
        self.options = options
        self.degradations = Degradations(options.data.degradation)

    @abstractmethod
    def target(self, photo: Photo) -> Path:
        """The file whose presence says that a photo is done."""

    def is_done(self, photo: Photo) -> bool:
        """Whether a photo has its file; a blank one is none."""
        target = self.target(photo)
        return target.is_file() and target.stat().st_size > 0

    @abstractmethod
    def ask(self, photo: Photo) -> list[Question]:
        """What is asked about a photo. Raises PhotoError for one that cannot be used."""

    @abstractmethod
    def write(self, photo: Photo, answers: Sequence[object]) -> None:
        """Write a photo's files from what its questions' `read` gave, the target last."""

    def finish(self, photos: Sequence[Photo]) -> list[Path]:
        """Write what is made of all photos together, and return those files."""
        return []

    def shown(self, hq: Tensor, draws: Draws, small: bool) -> Tensor:
        """What a model is shown of a clean picture `[1, 3, H, W]`: `[h, w, 3]`, degraded unless the options say
        otherwise, and `small` as it comes out of the degradation."""
        if self.options.clean:
            return hq[0].movedim(0, -1)
        lq = self.degradations.low(hq, draws) if small else self.degradations(hq, draws)
        return lq[0].movedim(0, -1)

    def whole(self, photo: Photo, image: Image.Image) -> Tensor:
        """The whole photo as a model is shown it: small, because it shrinks larger ones, and detail with them."""
        image = image.copy()
        image.thumbnail((self.options.side, self.options.side), Image.Resampling.LANCZOS)
        return self.shown(to_tensor(np.array(image)), Draws((self.options.seed, photo.number), 0), small=True)

    def drawn_crops(self, photo: Photo, size: tuple[int, int]) -> list[Crop]:
        """Crops of a photo of (width, height) as training draws them. Raises PhotoError for one that is too small."""
        data = self.options.data
        rng = np.random.default_rng((self.options.seed, photo.number))
        return [draw_crop(size, data.crop, data.resize, data.enlarge, rng) for _ in range(self.options.crops)]


class Caption(Kind):
    """A caption or content tags of the degraded photo (VICR, arXiv 2606.00704), as `photo.txt`."""

    def __init__(self, options: Options, style: Style):
        super().__init__(options)
        self.style = style

    def target(self, photo: Photo) -> Path:
        return sidecar(photo.path, self.options.data.prompts)

    def ask(self, photo: Photo) -> list[Question]:
        image = self.whole(photo, read_photo(photo.path))
        options = self.options
        return [caption_question(image, self.style, options.max_length, options.instruction, photo.number)]

    def write(self, photo: Photo, answers: Sequence[object]) -> None:
        (text,) = answers
        write_text(self.target(photo), f"{text}\n")


class CropCaptions(Kind):
    """A prompt for the photo and one for each of some crops (DreamSR, arXiv 2605.15682), as `photo.crops.json`."""

    def target(self, photo: Photo) -> Path:
        return sidecar(photo.path, self.options.data.crop_prompts)

    def ask(self, photo: Photo) -> list[Question]:
        options, image = self.options, read_photo(photo.path)
        crops = self.drawn_crops(photo, image.size)
        captioning = PatchCaptioning(options.max_length, photo.number)
        questions = [captioning.whole_question(self.whole(photo, image)).question]
        told = instruction("patch", options.max_length, options.instruction)
        for number, crop in enumerate(crops, 1):
            draws = Draws((options.seed, photo.number), number)
            shown = self.shown(to_tensor(cut(image, crop)), draws, small=False)
            questions.append(
                Question(
                    told,
                    f"{place_of(crop)}\n\nWrite the prompt for this part. Answer with the prompt only.",
                    (Picture("A part of the photograph, low quality:", shown),),
                    read=partial(read_prompt, max_length=options.max_length),
                    seed=photo.number,
                )
            )
        return questions

    def write(self, photo: Photo, answers: Sequence[object]) -> None:
        crops = self.drawn_crops(photo, photo_size(photo.path))
        whole, *parts = map(str, answers)
        write_text(self.target(photo), CropPrompts(whole, list(zip(crops, parts, strict=True))).text())


def read_prompt(text: str, max_length: int) -> str:
    return within(read_fields(text, ("prompt",))["prompt"], max_length)


def place_of(crop: Crop) -> str:
    """Where a part lies, in words."""
    across = 100 * (crop.left + crop.side / 2) / crop.width
    down = 100 * (crop.top + crop.side / 2) / crop.height
    wide, high = 100 * crop.side / crop.width, 100 * crop.side / crop.height
    return (
        f"This part is {wide:.0f} % of the photograph's width and {high:.0f} % of its height. Its middle lies at "
        f"{across:.0f} % of the width, counted from the left, and at {down:.0f} % of the height, counted from the top."
    )


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 `[H, W, 3]` -> `[1, 3, H, W]` in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous().float() / 255


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda place: place.write_text(text, encoding="utf-8"))
