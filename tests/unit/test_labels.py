"""Words for the ids of inputs and outputs."""

from __future__ import annotations

import json

import pytest

from _pack import ROOT
from labels import BETTER, label


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tile_size", "Tile size"),
        ("vae", "VAE"),
        ("vae_tile_size", "VAE tile size"),
        ("clip_vision_output", "CLIP vision output"),
        ("lora_strength", "LoRA strength"),
        ("restoration_scale", "Restoration strength"),
        ("JPEG_quality", "JPEG quality"),
    ],
)
def test_words_of_an_id(name: str, words: str):
    assert label(name) == words


def test_every_better_word_is_needed():
    """It is of an input or output that there is, and the rule alone would not say it."""
    nodes = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8")).values()
    shown = {words["name"] for node in nodes for part in ("inputs", "outputs") for words in node.get(part, {}).values()}
    assert [name for name, words in BETTER.items() if words not in shown] == []
    ruled = {name: name.replace("_", " ").capitalize() for name in BETTER}
    assert [name for name, words in BETTER.items() if words == ruled[name]] == []
