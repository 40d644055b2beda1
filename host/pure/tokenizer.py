"""The text tokenizer of a released folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class TextTokenizer:
    """`tokenizer.json` as the prompt builder uses it: text to ids and back, no special token added by itself."""

    def __init__(self, path: Path):
        """Raises ValueError for a file that is no tokenizer."""
        # A compiled library that nothing else at start-up needs.
        from tokenizers import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path} is not a tokenizer file ({error}). Download it again.") from error

    @property
    def names(self) -> dict[str, int]:
        """Every token's name and id, added tokens included."""
        return self.tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens stay in it by name."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)
