"""Features on the disk: right, made once, by several processes at once, and never a reason to stop."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from _pack import ROOT
from realisr.training.data.cache import FeatureCache, content_key


def features(key: str) -> dict[str, torch.Tensor]:
    """Something that depends on every character."""
    codes = torch.tensor([float(ord(char)) for char in key[:8].ljust(8)])
    return {"embedding": codes.view(2, 4).to(torch.bfloat16), "pooled": codes.sum()}


class Network:
    """Counts what it is asked for."""

    def __init__(self, keys: list[str]):
        self.keys, self.asked = keys, []

    def __call__(self, positions: list[int]) -> dict[str, torch.Tensor]:
        self.asked += [self.keys[position] for position in positions]
        rows = [features(self.keys[position]) for position in positions]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def check(found: dict[str, torch.Tensor], keys: list[str]) -> None:
    assert found.keys() == {"embedding", "pooled"}
    for row, key in enumerate(keys):
        for name, value in features(key).items():
            assert torch.equal(found[name][row], value) and found[name].dtype == value.dtype


def fetch(cache: FeatureCache, keys: list[str]) -> list[str]:
    network = Network(keys)
    check(cache.fetch(keys, network), keys)
    return network.asked


def test_features_are_made_once(tmp_path):
    cache = FeatureCache(tmp_path, {"model": "t5"})
    assert fetch(cache, ["one", "two", "one"]) == ["one", "two"]
    assert fetch(cache, ["two", "three", "one"]) == ["three"]
    assert fetch(FeatureCache(tmp_path, {"model": "t5"}), ["three", "one", "one", "two"]) == []
    assert cache.fetch([], Network([])) == {}


def test_other_settings_are_other_entries(tmp_path):
    fetch(FeatureCache(tmp_path, {"model": "t5", "tokens": 512}), ["one"])
    assert fetch(FeatureCache(tmp_path, {"model": "t5", "tokens": 256}), ["one"]) == ["one"]
    assert fetch(FeatureCache(tmp_path, {"tokens": 512, "model": "t5"}), ["one"]) == []


@pytest.mark.parametrize("damage", [b"", b"\0" * 400, None])
def test_a_damaged_file_is_made_anew(tmp_path, damage, caplog):
    cache = FeatureCache(tmp_path, {})
    fetch(cache, ["one"])
    path = cache.path("one")
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert fetch(cache, ["one"]) == ["one"]
    assert "damaged" in caplog.text
    assert fetch(cache, ["one"]) == []


def test_a_file_of_another_key_is_not_taken(tmp_path):
    cache = FeatureCache(tmp_path, {})
    fetch(cache, ["one", "two"])
    cache.path("two").write_bytes(cache.path("one").read_bytes())
    assert fetch(cache, ["two"]) == ["two"]


def test_a_disk_that_takes_nothing_costs_time_only(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = FeatureCache(tmp_path / "cache", {})
    with caplog.at_level(logging.WARNING):
        assert fetch(cache, ["one"]) == ["one"]
        assert fetch(cache, ["one", "two"]) == ["one", "two"]
    assert len(caplog.records) == 1 and "cannot be kept" in caplog.text


def test_views_and_rows_are_stored_as_what_they_are(tmp_path):
    whole = torch.arange(24.0).view(2, 3, 4)
    cache = FeatureCache(tmp_path, {})
    made = cache.fetch(["a", "b"], lambda _: {"x": whole, "y": whole, "z": whole.transpose(1, 2)})
    again = cache.fetch(["a", "b"], lambda _: pytest.fail("computed again"))
    for found in (made, again):
        assert torch.equal(found["x"], whole) and torch.equal(found["z"], whole.transpose(1, 2))
    assert cache.path("a").stat().st_size < 1000


def test_features_of_different_forms_are_an_error(tmp_path):
    cache = FeatureCache(tmp_path, {})
    cache.fetch(["short"], lambda _: {"x": torch.zeros(1, 3)})
    with pytest.raises(ValueError, match="pad them"):
        cache.fetch(["short", "long"], lambda _: {"x": torch.zeros(1, 5)})


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from _pack import load_pack
load_pack()
import torch
from realisr.training.data.cache import FeatureCache

torch.set_num_threads(1)
cache = FeatureCache(Path(sys.argv[2]), {"model": "shared"})
print("ready", flush=True)
sys.stdin.readline()
made = 0
for turn in range(60):
    key = f"key {turn % 20}"
    def compute(positions):
        global made
        made += 1
        return {"x": torch.full((1, 20000), float(turn % 20))}
    if turn < 20:
        cache.store(key, {"x": compute([0])["x"][0]})  # both write all keys, whoever was first
    found = cache.fetch([key], compute)["x"]
    assert found.shape == (1, 20000) and (found == turn % 20).all(), key
print(made, flush=True)
"""


def test_two_processes_write_at_once(tmp_path):
    command = [sys.executable, "-c", WRITER, str(ROOT / "scripts"), str(tmp_path)]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        out, error = writer.communicate(timeout=300)
        assert writer.returncode == 0, error
        assert int(out) == 20 and "damaged" not in error
    names = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert len(names) == 20 and all(not name.startswith(".") for name in names)


def test_keys_of_contents():
    image = torch.rand(3, 4, 5)
    assert content_key(image) == content_key(image.clone())
    assert content_key(image.transpose(0, 1)) == content_key(image.transpose(0, 1).contiguous())
    others = [image + 1e-7, image.double(), image.view(5, 4, 3), image.bfloat16()]
    assert len({content_key(each) for each in (image, *others)}) == 5
    assert content_key(torch.tensor(1.0)) != content_key(torch.tensor([1.0]))


def test_the_folder_is_made_when_it_is_needed(tmp_path: Path):
    fetch(FeatureCache(tmp_path / "a" / "b", {}), ["one"])
    assert len(list((tmp_path / "a" / "b").rglob("*.safetensors"))) == 1
