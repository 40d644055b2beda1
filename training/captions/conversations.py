"""PURE's training items: degradation levels and descriptions of crops, with the pictures (arXiv 2503.11073)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from ...models.pure.prompt import INSTRUCTION, PLACEHOLDER
from ...services.vlm.answers import read_fields
from ...services.vlm.protocol import Picture, Question, UnusableAnswer
from ..data.crops import cut
from ..data.reading import read_photo
from ..engine.draws import Draws
from ..engine.files import write_atomically
from .kinds import Kind, Options, Photo, read_prompt, to_tensor, write_text

HERE = Path(__file__).parent
LEVELS = ("small", "medium", "large")


class Conversations(Kind):
    """Degradation levels and a description of crops (PURE, arXiv 2503.11073), with the crops themselves.

    Makes `conversations.json` in `out`, a list in the form that PURE's training reads, and the pictures it names. The
    paper takes the levels from an estimator of its own and the description, of the clean photo, from LLaVA: here the
    model is asked for both.
    """

    def __init__(self, options: Options, out: Path):
        super().__init__(options)
        self.out = out

    def name(self, photo: Photo) -> str:
        return f"{photo.folder.name}-{photo.path.stem}-{photo.number:08x}"

    def target(self, photo: Photo) -> Path:
        return self.out / "items" / f"{self.name(photo)}.json"

    def pairs(self, photo: Photo) -> list[tuple[Tensor, Tensor]]:
        """(clean, degraded) crops, each `[1, 3, crop, crop]`."""
        image = read_photo(photo.path)
        found = []
        for number, crop in enumerate(self.drawn_crops(photo, image.size), 1):
            hq = to_tensor(cut(image, crop))
            found.append((hq, self.degradations(hq, Draws((self.options.seed, photo.number), number))))
        return found

    def ask(self, photo: Photo) -> list[Question]:
        rate = told("pure_levels", self.options.max_length)
        describe = self.options.instruction.strip() or told("pure_description", self.options.max_length)
        questions = []
        for hq, lq in self.pairs(photo):
            questions.append(
                Question(
                    rate,
                    "Rate this photograph.",
                    (Picture("The low-quality photograph:", lq[0].movedim(0, -1)),),
                    fields=dict.fromkeys(("blur", "noise"), "small, medium or large"),
                    read=read_levels,
                    seed=photo.number,
                )
            )
            questions.append(
                Question(
                    describe,
                    "Describe this photograph. Answer with the description only.",
                    (Picture("The photograph:", hq[0].movedim(0, -1)),),
                    read=partial(read_prompt, max_length=self.options.max_length),
                    seed=photo.number,
                )
            )
        return questions

    def write(self, photo: Photo, answers: Sequence[object]) -> None:
        items = []
        for number, pair in enumerate(self.pairs(photo)):
            levels, description = answers[2 * number : 2 * number + 2]
            names = [f"{folder}/{self.name(photo)}-{number}.png" for folder in ("lq", "hq")]
            for name, image in zip(names, reversed(pair), strict=True):
                write_png(self.out / name, image)
            items.append(conversation(f"{levels} {description}", names))
        write_text(self.target(photo), json.dumps(items, ensure_ascii=False, indent=1) + "\n")

    def finish(self, photos: Sequence[Photo]) -> list[Path]:
        done = dict.fromkeys(self.target(photo) for photo in photos if self.is_done(photo))
        items = [item for path in done for item in json.loads(path.read_text(encoding="utf-8"))]
        listed = self.out / "conversations.json"
        write_text(listed, json.dumps(items, ensure_ascii=False, indent=1) + "\n")
        return [listed]


def told(name: str, max_length: int) -> str:
    """One of the pack's instructions, with the length limit put in."""
    text = (HERE / f"{name}.txt").read_text(encoding="utf-8")
    return text.replace("{max_length}", str(max_length)).strip()


def conversation(answer: str, pictures: Sequence[str]) -> dict[str, object]:
    """An item of PURE's training list: the instruction with the first picture, the answer with the second."""
    turns = [("human", f"{INSTRUCTION} {PLACEHOLDER}"), ("gpt", f"{answer} {PLACEHOLDER}")]
    return {"conversations": [{"from": who, "value": said} for who, said in turns], "image": list(pictures)}


def read_levels(text: str) -> str:
    """The sentence, "Medium blur, small noise." from an answer. Raises UnusableAnswer for other words."""
    found = {name: word.strip().strip(".").lower() for name, word in read_fields(text, ("blur", "noise")).items()}
    for name, word in found.items():
        if word not in LEVELS:
            raise UnusableAnswer(f"{name} must be one of {', '.join(LEVELS)}, not '{word[:40]}'.")
    return f"{found['blur'].capitalize()} blur, {found['noise']} noise."


def write_png(path: Path, image: Tensor) -> None:
    pixels = (image[0].movedim(0, -1) * 255).round().byte().numpy()
    write_atomically(path, lambda place: Image.fromarray(pixels).save(place, "PNG"))
