"""Whether the rules of a `tokenizer.json` could make a short text a huge one.

A tokenizer rewrites a text before it is cut into tokens, and the text of tokens after it is put together. The rules for
that are in the file, and forty that write each letter twice make of one letter a terabyte: inside a compiled library,
which neither stops nor says how far it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST_GROWTH = 64.0
"""Characters that one may become, by all rewriting rules together. Released tokenizers stay below 10."""

LONGEST_TOKEN = 4096
"""Characters of a token's name. Released ones have tokens of up to some hundred spaces."""

RULES = ("normalizer", "pre_tokenizer", "decoder")
UNICODE = {"NFC", "NFD", "NFKC", "NFKD", "Precompiled", "BertNormalizer", "ByteLevel", "Nmt"}
UNICODE_GROWTH = 4.0
"""Of tables of characters. A single character has 18 for itself, of which no text is made."""


def require_bounded(path: Path) -> None:
    """Raises ValueError, naming the file, for rules that multiply a text. A file that cannot be read is left to who
    reads it next."""
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(content, dict):
        return
    for part in RULES:
        growth = 1.0
        for rule in listed(content.get(part)):
            growth *= growth_of(rule)
        if growth > LARGEST_GROWTH:
            raise ValueError(f"the rules of the {part} in {path.name} make {growth:.3g} characters of one")
    repeats = sum(len(template) for template in templates(content.get("post_processor")))
    if repeats > LARGEST_GROWTH:
        raise ValueError(f"the templates of the post_processor in {path.name} have {repeats} parts")
    longest = max(map(len, token_names(content)), default=0)
    if longest > LONGEST_TOKEN:
        raise ValueError(f"{path.name} has a token of {longest} characters")


def listed(rule: Any) -> Iterator[dict[str, Any]]:
    """A rule, or those of a sequence at any depth, without recursion: a file may nest thousands."""
    waiting = [rule]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            inner = [each.get(name) for name in ("normalizers", "pretokenizers", "decoders", "processors")]
            waiting += [one for found in inner if isinstance(found, list) for one in found]


def growth_of(rule: dict[str, Any]) -> float:
    """Characters that a rule makes of one, at most. What it puts before a text counts as if each letter got it."""
    kind = rule.get("type")
    if kind == "Replace":
        pattern, content = rule.get("pattern"), length(rule.get("content"))
        if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
            return max(1.0, content / max(1, len(pattern["String"])))
        return 1.0 + content  # a regular expression may match where there is nothing
    if kind in UNICODE:
        return UNICODE_GROWTH
    return 1.0 + sum(length(rule.get(name)) for name in ("prepend", "replacement", "prefix", "suffix"))


def length(value: Any) -> int:
    return len(value) if isinstance(value, str) else 0


def templates(processor: Any) -> Iterator[list[Any]]:
    """The templates of a post-processor: lists of what it puts one after another."""
    for each in listed(processor):
        yield from (found for name in ("single", "pair") if isinstance(found := each.get(name), list))


def token_names(content: dict[str, Any]) -> Iterator[str]:
    model = content.get("model")
    names = model.get("vocab") if isinstance(model, dict) else None
    for name in names or () if isinstance(names, (dict, list)) else ():
        yield str(name[0]) if isinstance(name, list) and name else str(name)
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict):
            yield str(token.get("content", ""))
