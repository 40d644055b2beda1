"""The prompt in a language model's sense: the token ids PURE reads first, its instruction and the low-quality image.

Not a text that an artist writes about a picture: for that, the nodes say description.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .vocabulary import BOI, BOS, EOI, EOT, NL, PATCH_TOKENS, size_id

INSTRUCTION = "Perceive the degradation level, understand the image content, and restore the high-quality image."
PLACEHOLDER = "<|image|>"
SENTENCE_END = "."


class Tokenizer(Protocol):
    """A byte-level BPE tokenizer with PURE's special tokens; what `tokenizers.Tokenizer` offers, in two calls."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with no token added in front or behind."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens kept by name."""
        ...


def image_block(ids: Tensor) -> list[int]:
    """An image's tokens `[rows, columns]` as the sequence the model reads.

    BOI, height and width in patches of 32 pixels, each row followed by NL, EOI. Raises ValueError where patches do not
    fill the grid.
    """
    rows, columns = ids.shape
    if rows % PATCH_TOKENS or columns % PATCH_TOKENS:
        raise ValueError(f"a token grid of {rows} x {columns}: both sides must be multiples of {PATCH_TOKENS}")
    body = [token for row in ids.tolist() for token in (*row, NL)]
    return [BOI, size_id(rows // PATCH_TOKENS), size_id(columns // PATCH_TOKENS), *body, EOI]


def prompt_ids(tokenizer: Tokenizer, instruction: str, block: Sequence[int]) -> list[int]:
    """The whole prompt: start, instruction with the image in the place of `<|image|>`, end of turn.

    Without the placeholder the image follows the instruction after a space. Raises ValueError for several placeholders.
    """
    pieces = instruction.split(PLACEHOLDER)
    if len(pieces) > 2:
        raise ValueError(f"the instruction has {PLACEHOLDER} {len(pieces) - 1} times: one image is restored at a time")
    if len(pieces) == 1:
        pieces = [f"{instruction.rstrip()} " if instruction.strip() else "", ""]
    before, after = (tokenizer.encode(piece) if piece else [] for piece in pieces)
    return [BOS, *before, *block, *after, EOT]
