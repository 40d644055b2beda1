"""Patch prompts: a text for the whole picture and one for each tile of it (arXiv 2605.15682), asked for and as text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from .answers import one_line, read_fields, within
from .memory import KeyedQuestion
from .pictures import to_bytes
from .protocol import Picture, Question
from .questions import instruction

WHOLE = "whole picture"
HEADING = re.compile(r"===\s*(?:whole picture|tile (\d+)(?:,? *\(?row (\d+), column (\d+)\)?)?)\s*===", re.IGNORECASE)
MARK = "==="
SHOWN = 12
ASKED_AGAIN = re.compile(r"\s*(\d{1,6}):(\d{1,6})\s*")
SEEDS = 1 << 32


@dataclass(frozen=True)
class TilePlace:
    """A tile of a grid."""

    number: int
    """From 1, row by row."""
    row: int
    """From 1; 0 where it is not known."""
    column: int
    """From 1; 0 where it is not known."""

    def __str__(self) -> str:
        return f"tile {self.number} (row {self.row}, column {self.column})"


def tile_places(rows: int, columns: int) -> list[TilePlace]:
    """The tiles of a grid, row by row."""
    return [TilePlace(1 + i, 1 + i // columns, 1 + i % columns) for i in range(rows * columns)]


def pixels_key(image: Tensor) -> str:
    """A digest of `[H, W, C]`, equal for images that are so as 8-bit RGB, which is all a model is shown.

    Raises ValueError for another shape and for values that are not numbers.
    """
    pixels = to_bytes(image)
    return hashlib.sha256(repr(tuple(pixels.shape)).encode() + pixels.numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class PatchCaptioning:
    """How patch prompts are asked for."""

    max_length: int = 1500
    """Of each prompt, in characters."""
    seed: int | None = None
    """For models that take one."""
    whole_instruction: str = ""
    """An artist's, in place of the pack's (patch_global.txt), where not blank."""
    tile_instruction: str = ""
    """An artist's, in place of the pack's (patch.txt), where not blank."""
    tell_global_prompt: bool = False
    """Whether the model that describes a tile is told what the whole picture shows. Not by default: the paper puts
    over-generation down to a global prompt that says more than a patch shows."""
    asked_again: Mapping[int, int] = field(default_factory=dict)
    """How often a tile, by its number, was asked for anew although nothing about it has changed; 0 is the whole
    picture. Each time adds 1 to the seed, so that a workflow that is run again asks the same."""

    def whole_question(self, image: Tensor) -> KeyedQuestion:
        """Ask for the global prompt of an image `[H, W, C]` in 0..1. The answer is a text on one line."""
        told = instruction("patch_global", self.max_length, self.whole_instruction)
        text = "Write the prompt for this picture. Answer with the prompt only."
        return self._keyed(0, told, text, Picture("The whole photograph, low quality:", image))

    def tile_questions(
        self, tiles: Sequence[Tensor], rows: int, columns: int, whole_prompt: str, written_by_model: bool
    ) -> list[KeyedQuestion]:
        """Ask for the prompt of each tile `[h, w, C]` in 0..1, row by row. The answers are texts on one line.

        whole_prompt: what the whole picture shows, for tell_global_prompt. written_by_model: whether it is a model's
        answer. Its wording is then no part of the keys, so that a picture that is edited in one place leaves the other
        tiles' prompts alone; an artist's text is.
        """
        told = instruction("patch", self.max_length, self.tile_instruction)
        whole, context = "", None
        if self.tell_global_prompt:
            whole = f"The whole photograph shows: {one_line(whole_prompt)}\n\n"
            context = f"asked: {self.whole_instruction.strip()}" if written_by_model else f"given: {whole_prompt}"
        questions = []
        for place, tile in zip(tile_places(rows, columns), tiles, strict=True):
            text = (
                f"{whole}This part is in row {place.row} of {rows}, counted from the top, and in column "
                f"{place.column} of {columns}, counted from the left.\n\n"
                "Write the prompt for this part. Answer with the prompt only."
            )
            picture = Picture("A part of the photograph, low quality:", tile)
            questions.append(self._keyed(place.number, told, text, picture, context, place, rows, columns))
        return questions

    def _keyed(self, number: int, told: str, text: str, picture: Picture, *context: object) -> KeyedQuestion:
        again = self.asked_again.get(number, 0)
        seed = ((self.seed or 0) + again) % SEEDS if again else self.seed
        read = partial(_read_prompt, max_length=self.max_length)
        key = (pixels_key(picture.image), told, self.max_length, seed, *context)
        return KeyedQuestion(Question(told, text, (picture,), read=read, seed=seed), key)


def _read_prompt(text: str, max_length: int) -> str:
    return within(read_fields(text, ("prompt",))["prompt"], max_length)


def read_asked_again(text: str) -> dict[int, int]:
    """PatchCaptioning.asked_again from a text such as "3:1, 13:2"; empty for a blank one.

    Raises ValueError for any other text.
    """
    found = {}
    for part in filter(str.strip, text.split(",")):
        read = ASKED_AGAIN.fullmatch(part)
        if not read:
            raise ValueError(
                f"ask_again holds {part.strip()[:60]!r}. It takes a tile's number and how often it is asked for anew, "
                "such as 3:1, or several with commas; nothing asks for no tile anew."
            )
        found[int(read[1])] = int(read[2])
    return found


@dataclass(frozen=True)
class TileCaptions:
    """What a model wrote about a picture and the tiles of a grid."""

    whole: str
    tiles: Sequence[str]
    """A prompt for each tile, row by row; the whole picture's for those that failed."""
    rows: int
    columns: int
    failed: Mapping[int, str] = field(default_factory=dict)
    """Number of a tile, from 1 -> why it has no prompt of its own."""

    @property
    def text(self) -> str:
        return prompts_text(self.whole, self.tiles, self.rows, self.columns)


def prompts_text(whole: str, tiles: Sequence[str], rows: int, columns: int) -> str:
    """All prompts as one text that can be edited: a block for the whole picture, and one for each tile."""
    blocks = [
        (WHOLE, whole),
        *((str(place), prompt) for place, prompt in zip(tile_places(rows, columns), tiles, strict=True)),
    ]
    return "\n\n".join(f"{MARK} {title} {MARK}\n{_indented(prompt)}" for title, prompt in blocks) + "\n"


def _indented(prompt: str) -> str:
    """A prompt none of whose lines is a heading."""
    return "\n".join(f" {line}" if line.startswith(MARK) else line for line in prompt.split("\n"))


@dataclass(frozen=True)
class PromptBlock:
    """A block of the text."""

    tile: TilePlace | None
    """As its heading has it; None for the whole picture."""
    line: int
    """Of the heading, from 1."""
    prompt: str


def read_blocks(text: str) -> list[PromptBlock]:
    """The blocks of a text as prompts_text makes it, in any order. Line breaks inside a prompt stay.

    Raises ValueError, with the line, for text before the first heading, and for a line that begins as headings do and
    is none.
    """
    found: list[tuple[TilePlace | None, int, list[str]]] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        heading = HEADING.fullmatch(line.rstrip())
        if heading:
            place = TilePlace(*(int(group or 0) for group in heading.groups())) if heading[1] else None
            found.append((place, number, []))
        elif line.startswith(MARK):
            raise ValueError(
                f"line {number} begins with {MARK} and is no heading: {line.strip()!r}. Headings are "
                f"'{MARK} {WHOLE} {MARK}' and '{MARK} tile 1 {MARK}', '{MARK} tile 2 {MARK}', and so on."
            )
        elif found:
            found[-1][2].append(line)
        elif line.strip():
            raise ValueError(
                f"line {number} is before the first heading: {line.strip()[:60]!r}. A text begins with "
                f"'{MARK} {WHOLE} {MARK}' or '{MARK} tile 1 {MARK}' on a line of its own."
            )
    return [PromptBlock(place, line, "\n".join(lines).strip()) for place, line, lines in found]


def read_prompts(text: str, rows: int, columns: int, captions: TileCaptions | None = None) -> tuple[str, list[str]]:
    """(prompt of the whole picture, prompts of the tiles row by row) from a text as prompts_text makes it.

    captions: what stands in for blocks that the text lacks; one that is there counts, also when it is empty.
    Raises ValueError naming what is missing, twice there, of no tile, or at another place than the grid has it, and
    for captions of another grid.
    """
    if captions and (captions.rows, captions.columns) != (rows, columns):
        raise ValueError(
            f"the captions are of a grid of {captions.rows} rows of {captions.columns} tiles, and this one has {rows} "
            f"rows of {columns}. Give both nodes the same Tile Grid."
        )
    places = tile_places(rows, columns)
    blocks: dict[int | None, PromptBlock] = {}
    for read in read_blocks(text):
        number = read.tile.number if read.tile else None
        if number in blocks:
            name = f"the {WHOLE}" if number is None else f"tile {number}"
            raise ValueError(f"{name} is there twice, in lines {blocks[number].line} and {read.line}. Delete one.")
        blocks[number] = read
    extra = [number for number in blocks if number is not None and not 1 <= number <= len(places)]
    missing = [] if captions else [place for place in places if place.number not in blocks]
    if missing or extra:
        wrong = [f"it lacks {listed(missing)}"] if missing else []
        wrong += [f"the grid has no {listed([f'tile {number}' for number in extra])}"] if extra else []
        raise ValueError(
            f"the grid has {len(places)} tiles ({rows} rows of {columns}), and the text does not fit: "
            f"{'; '.join(wrong)}. Each tile needs one block: '{MARK} tile 1 {MARK}' with its prompt below."
        )
    for place in places:
        block = blocks.get(place.number)
        written = block.tile if block else None
        if block and written and written.row and written != place:
            raise ValueError(
                f"line {block.line} names {written}, but in the grid it is {place}. The text is of another grid, of "
                "other rows and columns; without row and column a heading fits any grid."
            )
    if None not in blocks and not captions:
        raise ValueError(
            f"it lacks the {WHOLE}. Add '{MARK} {WHOLE} {MARK}' with its prompt below; without a prompt if the global "
            "prompt comes from elsewhere."
        )
    prompts: dict[int | None, str] = {None: captions.whole, **dict(enumerate(captions.tiles, 1))} if captions else {}
    prompts |= {number: block.prompt for number, block in blocks.items()}
    return prompts[None], [prompts[place.number] for place in places]


def listed(items: Sequence[object]) -> str:
    """Some of the items by name, and how many more there are."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(map(str, items[:SHOWN])) + more
