"""Conversations as token ids, made once: text by the tokenizer, pictures by the VQGAN.

One file per conversation, `tokens/<settings>/<2 of 64 hex>/<64 hex>.safetensors`: `ids` int32 `[T]` and `target` uint8
`[T]`, 1 where the token is to be learnt. `<settings>` is a hash of what else they depend on (the VQGAN, the tokenizer,
the crop's side, the seed of the crops), which `settings.json` in it states; the name a hash of the texts, and of the
pictures' paths, sizes and times of change. A run tokenises what is missing as it comes to it; `scripts/tokenise.py`
does all at once. Several processes may write together, and a killed one leaves only whole files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.pure.prompt import image_block
from ...models.pure.vocabulary import Vocabulary
from ...models.pure.vqgan import VQGAN, to_pixels
from ..engine.draws import Draws
from ..engine.files import write_atomically
from .conversations import IGNORED, Conversation, length, tokens
from .pictures import chosen_size, picture_size, read_crop
from .tokenizer import TextTokenizer

LENGTHS = "lengths.json"


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises OSError where it is absent."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TokenStore:
    """A folder of tokenised conversations."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        """settings: everything but the conversation itself that its tokens depend on."""
        text = json.dumps(dict(settings), sort_keys=True, indent=1)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.text = text

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    def read(self, key: str) -> tuple[Tensor, Tensor] | None:
        """(ids, labels) int64 `[T]`; None where they were not written, or the file is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            stored = load_file(self.path(key))
            ids, target = stored["ids"].long(), stored["target"].bool()
        except (OSError, SafetensorError, KeyError):
            return None
        return ids, ids.masked_fill(~target, IGNORED)

    def write(self, key: str, ids: Sequence[int], labels: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keep them and return them as `read` does. Raises OSError when the disk is full."""
        from safetensors.torch import save_file

        row, marks = torch.tensor(ids), torch.tensor(labels)
        stored = {"ids": row.int(), "target": (marks != IGNORED).to(torch.uint8)}
        self.put(self.path(key), lambda place: save_file(stored, place))
        return row, marks

    def put(self, path: Path, write: Any) -> None:
        """A whole file in its place, whoever else writes the same one."""
        own = path.with_name(f"{path.name}.{os.getpid()}")
        write_atomically(own, write)
        os.replace(own, path)

    def lengths(self) -> dict[str, int]:
        """Tokens of conversations by key, as far as they are known."""
        with contextlib.suppress(OSError, ValueError):
            known = json.loads((self.folder / LENGTHS).read_text())
            if isinstance(known, dict):
                return known
        return {}

    def write_lengths(self, lengths: Mapping[str, int]) -> None:
        self.put(self.folder / LENGTHS, lambda place: place.write_text(json.dumps(dict(lengths))))
        self.put(self.folder / "settings.json", lambda place: place.write_text(self.text))


@dataclass(frozen=True)
class Entry:
    """A conversation of the training data."""

    conversation: Conversation
    key: str
    length: int
    """Tokens."""


class Tokeniser:
    """Conversations to token ids, through a store."""

    def __init__(self, store: TokenStore, tokenizer: TextTokenizer, vocabulary: Vocabulary, side: int, seed: int):
        """side: of the crops, in pixels. seed: of their places."""
        self.store, self.tokenizer, self.vocabulary = store, tokenizer, vocabulary
        self.side, self.seed = side, seed

    def entries(self, conversations: Sequence[Conversation]) -> tuple[list[Entry], list[tuple[str, str]]]:
        """Conversations with their lengths, from the heads of their pictures, and (name, reason) of unusable ones."""
        known = self.store.lengths()
        entries, unusable = [], []
        fresh: dict[str, int] = {}
        for conversation in conversations:
            try:
                key = conversation.key()
                if key not in known and key not in fresh:
                    crops = [chosen_size(*picture_size(path), self.side) for path in conversation.pictures]
                    fresh[key] = length(conversation, crops, self.tokenizer)
            except OSError as error:
                unusable.append((conversation.name, f"{type(error).__name__}: {error}"))
                continue
            entries.append(Entry(conversation, key, known[key] if key in known else fresh[key]))
        if fresh:
            self.store.write_lengths({**known, **fresh})
        return entries, unusable

    def crops(self, entry: Entry) -> list[Tensor]:
        """The entry's pictures as the model reads them, 8-bit `[H, W, 3]`. Raises OSError for a damaged one.

        Where each is cut depends on the seed and the entry alone.
        """
        words = [int(entry.key[start : start + 8], 16) for start in (0, 8, 16)]
        pictures = enumerate(entry.conversation.pictures)
        return [read_crop(path, self.side, Draws((self.seed, *words), number)) for number, path in pictures]

    @torch.no_grad()
    def tokenise(self, entry: Entry, crops: Sequence[Tensor], vqgan: VQGAN) -> tuple[Tensor, Tensor]:
        """(ids, labels) int64 `[T]` of an entry with these crops, written to the store. The VQGAN is in float32."""
        device = next(vqgan.parameters()).device
        grids = [vqgan.encode(to_pixels(crop[None]).to(device))[0].cpu() for crop in crops]
        blocks = [image_block(self.vocabulary.encode(grid)) for grid in grids]
        return self.store.write(entry.key, *tokens(entry.conversation, blocks, self.tokenizer))

    def unaligned(self, conversations: Sequence[Conversation]) -> int:
        """How many conversations have pictures that are no crop's size: those are cut at places of their own."""
        count = 0
        for conversation in conversations:
            with contextlib.suppress(OSError):
                sizes = [picture_size(path) for path in conversation.pictures]
                count += any(chosen_size(*size, self.side) != size for size in sizes)
        return count
