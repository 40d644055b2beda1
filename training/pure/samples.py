"""PURE's training samples: conversations in batches of similar length, as tokens where they are made already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.state_dict import first_few
from ..engine.batches import SKIPPED
from ..engine.method import Batch
from .batches import LengthBatches
from .config import PUREConfig
from .conversations import IGNORED, Conversation, read_list
from .tokens import Entry, Tokeniser

MOST_SKIPPED = 64
"""Samples in a row that may be unusable."""


def read_lists(config: PUREConfig) -> tuple[list[Conversation], list[float]]:
    """All conversations of a run, and each one's ratio. Raises FileNotFoundError and ValueError."""
    conversations: list[Conversation] = []
    ratios: list[float] = []
    for each in config.data.conversations:
        if not each.list.is_file():
            raise FileNotFoundError(f"data.conversations: there is no {each.list}")
        found = read_list(each.list)
        conversations += found
        ratios += [each.ratio] * len(found)
    return conversations, ratios


def usable(config: PUREConfig, tokeniser: Tokeniser) -> tuple[list[Entry], list[float], list[tuple[str, str]]]:
    """Conversations that can be used, their ratios, and (name, reason) of the others.

    Raises FileNotFoundError for an absent list, ValueError where none can be used.
    """
    conversations, ratios = read_lists(config)
    entries, unusable = tokeniser.entries(conversations)
    if not entries:
        raise ValueError(f"no conversation can be used: {first_few([f'{name} ({why})' for name, why in unusable])}")
    ratio = {conversation.name: value for conversation, value in zip(conversations, ratios, strict=True)}
    return entries, [ratio[entry.conversation.name] for entry in entries], unusable


class ConversationSamples:
    """Sample n: `entry`, with `ids` and `labels` where they are kept, else `crops`, 8-bit pictures to tokenise.

    A conversation whose pictures cannot be read gives way to the next one and is named under `skipped`.
    """

    def __init__(self, config: PUREConfig, tokeniser: Tokeniser):
        """Raises FileNotFoundError for an absent list, ValueError where too few conversations can be used."""
        self.tokeniser = tokeniser
        self.entries, ratios, self.unusable = usable(config, tokeniser)
        self.order = LengthBatches([entry.length for entry in self.entries], ratios, config.batch, config.seed)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        # What was unusable from the beginning is named once, with the first sample.
        skipped = list(self.unusable) if number == 0 else []
        for further in range(MOST_SKIPPED):
            entry = self.entries[self.order[number + further]]
            stored = self.tokeniser.read(entry)
            if stored is not None:
                return {"entry": entry, "ids": stored[0], "labels": stored[1], SKIPPED: skipped}
            try:
                return {"entry": entry, "crops": self.tokeniser.crops(entry), SKIPPED: skipped}
            except OSError as error:
                skipped.append((entry.conversation.name, f"{type(error).__name__}: {error}"))
        raise ValueError(
            f"{MOST_SKIPPED} conversations in a row cannot be read: {first_few([each[1] for each in skipped])}"
        )


def collate(items: Sequence[Mapping[str, Any]]) -> Batch:
    """Samples as they are, in lists: they differ in length."""
    return {"items": [{key: value for key, value in item.items() if key != SKIPPED} for item in items]}


def padded(rows: Sequence[Tensor], fill: int, length: int) -> Tensor:
    """Vectors side by side, `[B, T]`, filled up on the right and cut at `length`."""
    longest = min(max(map(len, rows)), length)
    out = torch.full((len(rows), longest), fill, dtype=torch.long)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row[:longest]
    return out


def padded_batch(pairs: Sequence[tuple[Tensor, Tensor]], length: int) -> tuple[Tensor, Tensor]:
    """Ids filled up with 0 and labels with -100, each `[B, T]`, from (ids, labels) of each conversation."""
    ids, labels = zip(*pairs, strict=True)
    return padded(ids, 0, length), padded(labels, IGNORED, length)


def missing(entries: Sequence[Entry], tokeniser: Tokeniser) -> list[Entry]:
    """Conversations whose tokens are not kept, or not whole, each once."""
    fresh = {entry.key: entry for entry in entries if tokeniser.read(entry) is None}
    return list(fresh.values())


def token_folder(config: PUREConfig) -> Path:
    return config.data.tokens or config.out / "tokens"
