"""The browser code is small, and its texts are all there, in each language, and all shown somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "js").glob("*.js"))
LIMIT = 88_000
LANGUAGES = sorted(folder.name for folder in (ROOT / "locales").iterdir() if folder.is_dir())

PLAIN = re.compile(r'"([a-z_]+\.[a-z_.]+)"')
TEMPLATE = re.compile(r"[tT]ext\(`([^`]+)`|const key = `([^`]+)`")
HOLE = re.compile(r"\$\{[^}]+\}")


def texts(language: str) -> dict[str, str]:
    main = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))
    return main["realisr"]


KEYS = set().union(*map(texts, LANGUAGES))
SPACES = {key.split(".")[0] for key in KEYS}
SOURCES = {module.name: module.read_text(encoding="utf-8") for module in MODULES}
# What is put into a text's key in the browser may come from a node.
WORDS = set(
    re.findall(
        r"[\"']([^\"'\n]+)[\"']",
        "\n".join(
            path.read_text(encoding="utf-8")
            for folder in ("nodes", "services", "models", "host")
            for path in (ROOT / folder).rglob("*.py")
        ),
    )
)


def named_in(source: str) -> set[str]:
    """Keys that stand in a module as they are."""
    return {key for key in PLAIN.findall(source) if key.split(".")[0] in SPACES} | (
        KEYS & set(re.findall(r'text\("(\w+)"', source))
    )


def composed_in(source: str) -> dict[str, set[str]]:
    """Templates of keys in a module -> the keys they make with words of that module or of a node."""
    words = WORDS | set(re.findall(r'"([^"\n]+)"', source)) | set(re.findall(r"\b\w+\b", source))
    found = {}
    for template in ("".join(groups) for groups in TEMPLATE.findall(source)):
        pattern = "(.+)".join(map(re.escape, HOLE.split(template)))
        matches = {key: re.fullmatch(pattern, key) for key in KEYS}
        found[template] = {key for key, match in matches.items() if match and set(match.groups()) <= words}
    return found


def test_all_modules_together_are_small():
    sizes = {module.name: len(module.read_bytes()) for module in MODULES}
    assert sum(sizes.values()) <= LIMIT, sizes


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_every_text_of_a_module_exists(module: str):
    source = SOURCES[module]
    assert named_in(source) - KEYS == set()
    assert [template for template, keys in composed_in(source).items() if not keys] == []


def test_every_text_is_shown_somewhere():
    named = set().union(*map(named_in, SOURCES.values()))
    composed = [keys for source in SOURCES.values() for keys in composed_in(source).values()]
    values = {key for key in KEYS if key.startswith("choice.")}  # Of dropdowns: tests/e2e/test_locales.py.
    assert KEYS - values - named.union(*composed) == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_says_the_same_in_every_language(language: str):
    def holes(language: str) -> dict[str, list[str]]:
        # A dropdown's values are English.
        said = {key: text for key, text in texts(language).items() if not key.startswith("choice.")}
        return {key: sorted(re.findall(r"\[\w+\]", text)) for key, text in said.items()}

    assert holes(language) == holes("en")
