"""Tokenised conversations: what is written, what is made again, what several processes and damage do to it."""

from __future__ import annotations

import os

import pytest
import torch

from harness import pure_training
from harness.pure_training import SIDE
from oracles import pure_training as oracle
from parity.pure_tokenizer import ByteTokenizer
from realisr.models.pure.vocabulary import Vocabulary
from realisr.models.pure.vqgan import to_pixels
from realisr.training.data.cache import FeatureCache
from realisr.training.pure.conversations import read_list
from realisr.training.pure.start import load_vqgan
from realisr.training.pure.tokens import Tokeniser


@pytest.fixture(scope="module")
def vqgan(tmp_path_factory):
    from harness import pure

    path = tmp_path_factory.mktemp("vq") / pure.VQ_FILE
    pure.save_vqgan(path, pure.vqgan())
    return load_vqgan(path, torch.device("cpu"))


@pytest.fixture
def conversations(tmp_path):
    return read_list(pure_training.save_pairs(tmp_path / "pairs", 3))


def tokeniser(tmp_path, **settings):
    cache = FeatureCache(tmp_path / "tokens", {"side": SIDE, **settings})
    return Tokeniser(cache, ByteTokenizer(), Vocabulary.formula(), SIDE, seed=0)


def test_tokens_are_written_as_they_are_read(tmp_path, conversations, vqgan):
    made = tokeniser(tmp_path)
    entries, unusable = made.entries(conversations)
    assert not unusable
    for entry in entries:
        crops = made.crops(entry)
        ids, labels = made.tokenise(entry, crops, vqgan)
        grids = [vqgan.encode(to_pixels(crop[None]))[0].tolist() for crop in crops]
        turns = [("gpt" if turn.answers else "human", turn.text) for turn in entry.conversation.turns]
        assert (ids.tolist(), labels.tolist()) == oracle.item(turns, grids, ByteTokenizer().encode)
        assert len(ids) == entry.length
        again = made.read(entry)
        assert again is not None and torch.equal(again[0], ids) and torch.equal(again[1], labels)


def test_what_is_there_is_kept_and_what_is_damaged_is_made_again(tmp_path, conversations, vqgan):
    made = tokeniser(tmp_path)
    entries, _ = made.entries(conversations)
    for entry in entries[:2]:
        made.tokenise(entry, made.crops(entry), vqgan)
    made.cache.path(entries[0].key).write_bytes(b"half a fi")
    assert [made.read(entry) is None for entry in entries] == [True, False, True]
    assert [made.has(entry) for entry in entries] == [True, True, False]


def test_another_picture_text_or_setting_has_other_tokens(tmp_path, conversations):
    made = tokeniser(tmp_path)
    (first, *_), _ = made.entries(conversations)
    assert tokeniser(tmp_path, vqgan="another").cache.path(first.key) != made.cache.path(first.key)
    keys = [entry.key for entry in made.entries(conversations)[0]]
    assert keys == [entry.key for entry in made.entries(conversations)[0]]
    assert len(set(keys)) == 3
    picture = conversations[0].pictures[1]
    os.utime(picture, ns=(1, 1))
    assert [entry.key == key for entry, key in zip(made.entries(conversations)[0], keys, strict=True)] == [
        False,
        True,
        True,
    ]


def test_pictures_that_cannot_be_read_are_named(tmp_path, conversations):
    conversations[0].pictures[0].unlink()
    conversations[2].pictures[1].write_bytes(b"no picture")
    entries, unusable = tokeniser(tmp_path).entries(conversations)
    assert [entry.conversation.name for entry in entries] == [conversations[1].name]
    assert [name for name, _ in unusable] == [conversations[0].name, conversations[2].name]


def test_places_of_crops_depend_on_the_seed_and_the_entry_alone(tmp_path):
    conversations = read_list(pure_training.save_pairs(tmp_path / "pairs", 2, width=SIDE + 40, height=SIDE + 29))
    made = tokeniser(tmp_path)
    entries, _ = made.entries(conversations)
    first = [made.crops(entry) for entry in entries]
    again = [tokeniser(tmp_path).crops(entry) for entry in reversed(entries)][::-1]
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert made.unaligned(conversations) == 2
    other_seed = Tokeniser(made.cache, ByteTokenizer(), Vocabulary.formula(), SIDE, seed=1)
    different = [other_seed.crops(entry) for entry in entries]
    assert not all(
        torch.equal(*pair) for one, two in zip(first, different, strict=True) for pair in zip(one, two, strict=True)
    )


def test_lengths_are_found_out_once(tmp_path, conversations, monkeypatch):
    first, _ = tokeniser(tmp_path).entries(conversations)
    monkeypatch.setattr("realisr.training.pure.tokens.picture_size", lambda path: pytest.fail("opened again"))
    assert tokeniser(tmp_path).entries(conversations)[0] == first
