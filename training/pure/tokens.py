"""Conversations as token ids, made once: text by the tokenizer, pictures by the VQGAN.

Kept in a `data.cache.FeatureCache`: one safetensors file per conversation with `ids` int32 `[T]` and `target` uint8
`[T]`, 1 where the token is to be learnt. The key is a hash of the texts and of the pictures' paths, sizes and times of
change; what else they depend on (VQGAN, tokenizer, the crops' side and seed) are the cache's settings. A run tokenises
what is missing as it comes to it; `scripts/tokenise.py` does all at once. Several processes may write together.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...models.pure.prompt import image_block
from ...models.pure.vocabulary import Vocabulary
from ...models.pure.vqgan import VQGAN, to_pixels
from ..data.cache import FeatureCache
from ..engine.draws import Draws
from ..engine.files import write_atomically
from .conversations import IGNORED, Conversation, length, tokens
from .pictures import chosen_size, picture_size, read_crop
from .tokenizer import TextTokenizer

ENDS = 2**20
"""Bytes at both ends of a file that its mark is made of."""


def file_mark(path: Path) -> str:
    """A hash of a file's size and of its first and last megabyte, which tells one model's file from another's.

    Raises OSError where it is absent.
    """
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        digest.update(file.read(ENDS))
        file.seek(max(0, path.stat().st_size - ENDS))
        digest.update(file.read())
    return digest.hexdigest()


@dataclass(frozen=True)
class Entry:
    """A conversation of the training data."""

    conversation: Conversation
    key: str
    length: int
    """Tokens."""


class Tokeniser:
    """Conversations to token ids, through a cache."""

    def __init__(self, cache: FeatureCache, tokenizer: TextTokenizer, vocabulary: Vocabulary, side: int, seed: int):
        """side: of the crops, in pixels. seed: of their places."""
        self.cache, self.tokenizer, self.vocabulary = cache, tokenizer, vocabulary
        self.side, self.seed = side, seed

    def entries(self, conversations: Sequence[Conversation]) -> tuple[list[Entry], list[tuple[str, str]]]:
        """Conversations with their lengths, from the heads of their pictures, and (name, reason) of unusable ones."""
        known = self.known_lengths()
        before = len(known)
        entries, unusable = [], []
        for conversation in conversations:
            try:
                key = conversation.key()
                if key not in known:
                    crops = [chosen_size(*picture_size(path), self.side) for path in conversation.pictures]
                    known[key] = length(conversation, crops, self.tokenizer)
            except OSError as error:
                unusable.append((conversation.name, f"{type(error).__name__}: {error}"))
                continue
            entries.append(Entry(conversation, key, known[key]))
        if len(known) > before:
            with contextlib.suppress(OSError):  # a full disk: they are found out again
                write_atomically(self.lengths_file, lambda place: place.write_text(json.dumps(known), encoding="utf-8"))
        return entries, unusable

    @property
    def lengths_file(self) -> Path:
        mark = hashlib.sha256(self.cache.settings.encode()).hexdigest()[:16]
        return self.cache.folder / f"lengths-{mark}.json"

    def known_lengths(self) -> dict[str, int]:
        """Tokens of conversations by key, as far as an earlier run found them out."""
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(self.lengths_file.read_text(encoding="utf-8"))
            if isinstance(known, dict):
                return known
        return {}

    def has(self, entry: Entry) -> bool:
        return self.cache.path(entry.key).is_file()

    def read(self, entry: Entry) -> tuple[Tensor, Tensor] | None:
        """(ids, labels) int64 `[T]`; None where they are not kept, or the file is damaged."""
        kept = self.cache.load(entry.key)
        if kept is None or kept.keys() != {"ids", "target"}:
            return None
        ids = kept["ids"].long()
        return ids, ids.masked_fill(~kept["target"].bool(), IGNORED)

    def crops(self, entry: Entry) -> list[Tensor]:
        """The entry's pictures as the model reads them, 8-bit `[H, W, 3]`. Raises OSError for a damaged one.

        Where each is cut depends on the seed and the entry alone.
        """
        words = [int(entry.key[start : start + 8], 16) for start in (0, 8, 16)]
        pictures = enumerate(entry.conversation.pictures)
        return [read_crop(path, self.side, Draws((self.seed, *words), number)) for number, path in pictures]

    @torch.no_grad()
    def tokenise(self, entry: Entry, crops: Sequence[Tensor], vqgan: VQGAN) -> tuple[Tensor, Tensor]:
        """(ids, labels) int64 `[T]` of an entry with these crops, and keep them. The VQGAN is in float32."""
        device = next(vqgan.parameters()).device
        grids = [vqgan.encode(to_pixels(crop[None]).to(device))[0].cpu() for crop in crops]
        blocks = [image_block(self.vocabulary.encode(grid)) for grid in grids]
        ids, labels = (torch.tensor(row) for row in tokens(entry.conversation, blocks, self.tokenizer))
        self.cache.store(entry.key, {"ids": ids.int(), "target": (labels != IGNORED).to(torch.uint8)})
        return ids, labels

    def unaligned(self, conversations: Sequence[Conversation]) -> int:
        """How many conversations have pictures that are no crop's size: those are cut at places of their own."""
        count = 0
        for conversation in conversations:
            with contextlib.suppress(OSError):
                sizes = [picture_size(path) for path in conversation.pictures]
                count += any(chosen_size(*size, self.side) != size for size in sizes)
        return count
