"""PURE's training items: conversations about pictures, as token ids of which the answers are targets.

A list is JSON, in the form of the authors' code:

    [{"conversations": [{"from": "human", "value": "Perceive the degradation level, ... image. <|image|>"},
                        {"from": "gpt", "value": "Medium blur, small noise. The image shows ... <|image|>"}],
      "image": ["lq/0001.png", "hq/0001.png"]}, ...]

with as many `<|image|>` as pictures, in order. An item becomes: start, then for each turn its text with every picture's
block in its place and an end of turn. Every token of an answer is a target, its pictures' rows ends and sizes too;
none of a question is, its low-quality picture included (arXiv 2503.11073, section 3.2).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.pure.prompt import PLACEHOLDER, Tokenizer
from ...models.pure.vocabulary import BOS, EOT, PATCH_PIXELS, PATCH_TOKENS

IGNORED = -100
"""Label of a token that is no target."""

QUESTION, ANSWER = "human", "gpt"


@dataclass(frozen=True)
class Turn:
    answers: bool
    text: str
    """With a placeholder for every picture."""


@dataclass(frozen=True)
class Conversation:
    """One item of a list."""

    turns: tuple[Turn, ...]
    pictures: tuple[Path, ...]
    name: str
    """`<list>:<number>`, for messages."""

    def key(self) -> str:
        """A hash of the texts and of which pictures these are, with their sizes in bytes and times of change.

        Raises OSError where a picture is absent.
        """
        files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.pictures]
        texts = [(turn.answers, turn.text) for turn in self.turns]
        return hashlib.sha256(json.dumps([texts, files]).encode()).hexdigest()


def read_list(path: Path) -> list[Conversation]:
    """The conversations of a JSON list. Raises FileNotFoundError, and ValueError naming the first item that is none."""
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(items, list) or not items:
        raise ValueError(f"{path} must be a JSON list of conversations")
    return [read_item(item, path.parent, f"{path}:{number}") for number, item in enumerate(items)]


def read_item(item: Any, folder: Path, name: str) -> Conversation:
    """Raises ValueError, naming the item, for what does not fit."""
    try:
        turns = tuple(Turn(is_answer(turn["from"]), str(turn["value"])) for turn in item["conversations"])
        pictures = item.get("image", [])
        paths = tuple(folder / str(picture) for picture in ([pictures] if isinstance(pictures, str) else pictures))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f'{name}: not {{"conversations": [{{"from", "value"}}, ...], "image": [...]}} ({error!r})'
        ) from error
    placeholders = sum(turn.text.count(PLACEHOLDER) for turn in turns)
    if placeholders != len(paths):
        raise ValueError(f"{name}: {len(paths)} pictures for {placeholders} {PLACEHOLDER}: there must be one for each")
    if not any(turn.answers for turn in turns):
        raise ValueError(f"{name}: no turn is from '{ANSWER}': there is nothing to learn")
    return Conversation(turns, paths, name)


def is_answer(speaker: Any) -> bool:
    if speaker not in (QUESTION, ANSWER):
        raise ValueError(f"a turn is from {speaker!r}: '{QUESTION}' or '{ANSWER}'")
    return speaker == ANSWER


def tokens(
    conversation: Conversation, blocks: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
    """(token ids, labels) of a conversation, equally long; a label is the token's own id, or -100 for no target.

    blocks: of each picture, `prompt.image_block` of its ids.
    """
    ids, labels = [BOS], [IGNORED]
    waiting = iter(blocks)
    for turn in conversation.turns:
        spoken: list[int] = []
        for place, text in enumerate(turn.text.split(PLACEHOLDER)):
            spoken += [*(next(waiting) if place else ()), *(tokenizer.encode(text) if text else ())]
        spoken.append(EOT)
        ids += spoken
        labels += spoken if turn.answers else [IGNORED] * len(spoken)
    return ids, labels


def block_length(width: int, height: int) -> int:
    """Tokens of the block of a crop in pixels: rows with their ends, two sizes, start and end."""
    per_side = PATCH_PIXELS // PATCH_TOKENS
    return (height // per_side) * (width // per_side + 1) + 4


def length(conversation: Conversation, crops: Sequence[tuple[int, int]], tokenizer: Tokenizer) -> int:
    """Tokens of a conversation whose pictures have crops of these (width, height), without looking at them."""
    empty, _ = tokens(conversation, [()] * len(crops), tokenizer)
    return len(empty) + sum(block_length(*crop) for crop in crops)
