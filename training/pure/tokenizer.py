"""The text tokenizer of a start folder, for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...models.pure.vocabulary import Vocabulary, check_special_names


class TextTokenizer:
    """`tokenizer.json` as conversations use it: no token is added by itself."""

    def __init__(self, path: Path):
        """Raises FileNotFoundError for an absent file and ValueError for one that is no tokenizer."""
        from tokenizers import Tokenizer

        if not path.is_file():
            raise FileNotFoundError(f"{path} is absent: it comes with the weights")
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path} is not a tokenizer file ({error})") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.path = path

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens stay in the text by name."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    @property
    def names(self) -> dict[str, int]:
        return self.tokenizer.get_vocab(with_added_tokens=True)


def read_vocabulary(tokenizer: TextTokenizer, config: Mapping[str, Any]) -> Vocabulary:
    """Which token is which image code, as the loader node reads it. Raises ValueError for another model's tokenizer."""
    names, named = tokenizer.names, config.get("vocabulary_map")
    try:
        check_special_names(names)
        return Vocabulary.find([("tokenizer.json", names), ("config.json", named if isinstance(named, dict) else {})])
    except ValueError as error:
        raise ValueError(f"{tokenizer.path}: {error}") from error
