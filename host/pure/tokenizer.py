"""The text tokenizer of a released folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...services.panics import panics_as_errors
from ...services.tokenizer_rules import require_bounded


class TextTokenizer:
    """`tokenizer.json` as the prompt builder uses it: text to ids and back, no special token added by itself."""

    def __init__(self, path: Path):
        """Raises ValueError for a file that is no tokenizer."""
        # A compiled library that nothing else at start-up needs.
        from tokenizers import Tokenizer

        self.path = path
        with self._errors_named():
            require_bounded(path)
            self.tokenizer = Tokenizer.from_file(str(path))
            # The file may ask for either; a prompt is neither cut nor filled up.
            self.tokenizer.no_truncation()
            self.tokenizer.no_padding()

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Raises ValueError, naming the file, for whatever is raised inside: parts of a file are first used late."""
        try:
            with panics_as_errors():
                yield
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{self.path} is not a tokenizer file ({error}). Download it again.") from error

    @property
    def names(self) -> dict[str, int]:
        """Every token's name and id, added tokens included."""
        return self.tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Raises ValueError for a file that cannot do it."""
        with self._errors_named():
            return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens stay in it by name."""
        with self._errors_named():
            return self.tokenizer.decode(list(ids), skip_special_tokens=False)
