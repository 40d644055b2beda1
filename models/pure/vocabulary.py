"""PURE's vocabulary: 65536 Chameleon tokens, of which 8192 name image codes, then 8192 further image codes.

Image codes are those of the VQ autoencoder, 0..16383. An `image index` counts the image tokens in ascending order of
their ids; codes and indices are the same numbers unless a model's own name table says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

VOCABULARY = 73728
IMAGE_TOKENS = 16384
IMAGE_RANGES = ((4, 8196), (65536, 73728))
"""Ids of the image tokens, ends excluded."""

BOS = 0
EOI = 8196
BOI = 8197
EOT = 8710
NL = 8803
SIZE_BASE = 8804
MAX_SIDE = 32
"""Largest side of an image, in patches of 32 pixels."""

PATCH_PIXELS = 32
PATCH_TOKENS = 4
"""Image tokens along one side of a patch: one token is 8x8 pixels."""

SPECIAL_NAMES = {
    "<s>": BOS,
    "<eoss>": EOI,
    "<racm3:break>": BOI,
    "<reserved08706>": EOT,
    "<reserved08799>": NL,
    "<reserved08801>": SIZE_BASE + 1,
    "<reserved08816>": SIZE_BASE + 16,
    "<reserved08832>": SIZE_BASE + 32,
}

LETTERS = {chr(ord("A") + digit): str(digit) for digit in range(10)}
CODE_NAME = re.compile(r"IMGIMG([A-J]+)Z")


def size_id(patches: int) -> int:
    """The token that states a side of `patches` patches. Raises ValueError outside 1..32."""
    if not 1 <= patches <= MAX_SIDE:
        raise ValueError(f"a side of {patches} patches of {PATCH_PIXELS} pixels: it must be 1 to {MAX_SIDE}")
    return SIZE_BASE + patches


def image_ids(device=None) -> Tensor:
    """All image token ids in ascending order, `[16384]`."""
    return torch.cat([torch.arange(start, end, device=device) for start, end in IMAGE_RANGES])


def index_to_id(index: Tensor) -> Tensor:
    """Token ids of image indices, any shape."""
    (start, end), (further, _) = IMAGE_RANGES
    half = end - start
    return torch.where(index < half, index + start, index + (further - half))


def id_to_index(ids: Tensor) -> Tensor:
    """Image indices of token ids, any shape; -1 where an id is no image token."""
    (start, end), (further, stop) = IMAGE_RANGES
    low = (ids >= start) & (ids < end)
    high = (ids >= further) & (ids < stop)
    index = torch.where(low, ids - start, ids - further + (end - start))
    return torch.where(low | high, index, torch.full_like(ids, -1))


def check_special_names(names: Mapping[str, int]) -> None:
    """Raises ValueError naming the first special token that a tokenizer lacks or numbers differently."""
    for name, wanted in SPECIAL_NAMES.items():
        found = names.get(name)
        if found != wanted:
            seen = "is absent" if found is None else f"has id {found}"
            raise ValueError(f"the tokenizer is not PURE's: token {name} {seen}, it must have id {wanted}")


@dataclass(frozen=True)
class Vocabulary:
    """Which token stands for which image code."""

    ids: Tensor
    """Token id of each code, `[16384]`."""
    source: str = "formula"
    """Where the order comes from, 'formula' or the name of a table."""

    @classmethod
    def formula(cls) -> Vocabulary:
        """Codes in the order of the ids: code + 4 below 8192, code + 57344 from there."""
        return cls(image_ids())

    @classmethod
    def from_names(cls, names: Mapping[str, int], source: str = "names") -> Vocabulary:
        """Read the order off token names: `IMGIMG` + the code's digits as letters A..J + `Z`.

        Raises ValueError unless the names map 0..16383 one to one onto the image ids.
        """
        found = {int("".join(LETTERS[c] for c in match[1])): id_ for match, id_ in code_names(names)}
        if len(found) != IMAGE_TOKENS or set(found) != set(range(IMAGE_TOKENS)):
            raise ValueError(f"{source} names {len(found)} image codes, it must name {IMAGE_TOKENS}, from 0 on")
        ids = torch.tensor([found[code] for code in range(IMAGE_TOKENS)])
        if not torch.equal(ids.sort().values, image_ids()):
            outside = ids[id_to_index(ids) < 0]
            what = f"code names outside the image ids, such as {int(outside[0])}" if len(outside) else "an id twice"
            raise ValueError(f"{source} has {what}: image ids are 4..8195 and 65536..73727, each once")
        return cls(ids, source)

    @classmethod
    def find(cls, tables: Iterable[tuple[str, Mapping[str, int]]]) -> Vocabulary:
        """The first of (label, name -> id) tables that names codes beyond 8191, else the formula.

        A table with the first 8192 only is a Chameleon tokenizer and says nothing about the rest.
        Raises ValueError where a table does name them but not one to one.
        """
        for label, names in tables:
            if sum(1 for _ in code_names(names)) > IMAGE_TOKENS // 2:
                return cls.from_names(names, label)
        return cls.formula()

    def index_of_code(self) -> Tensor:
        """Image index of each code, `[16384]`."""
        return id_to_index(self.ids)

    def code_of_index(self) -> Tensor:
        """Code of each image index, `[16384]`."""
        return torch.argsort(self.index_of_code())

    def encode(self, codes: Tensor) -> Tensor:
        """Token ids of codes, any shape."""
        return self.ids.to(codes.device)[codes]


def code_names(names: Mapping[str, int]) -> Iterable[tuple[re.Match[str], int]]:
    """(parsed name, id) of the names that spell an image code."""
    for name, id_ in names.items():
        match = CODE_NAME.fullmatch(name)
        if match:
            yield match, id_
