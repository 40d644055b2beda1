"""What pip and uv make of the pack: the extras, and no module that would shadow another's."""

from __future__ import annotations

import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from _pack import ROOT
from host_env import read_extra

EXTRAS = ("agent", "demo", "evaluate", "quality", "test")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch):
    """The build backend that pyproject.toml names, in this process and without a network."""
    monkeypatch.chdir(ROOT)
    return pytest.importorskip("hatchling.build", reason="hatchling is in the test extra: run `make setup`")


def test_the_wheel_holds_metadata_and_no_module(backend, tmp_path: Path):
    name = backend.build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / name) as wheel:
        folders = {member.partition("/")[0] for member in wheel.namelist()}
        (described,) = [member for member in wheel.namelist() if member.endswith("/METADATA")]
        fields = Parser().parsestr(wheel.read(described).decode())
    assert folders == {described.partition("/")[0]}
    assert fields["Name"] == "realisr"
    assert set(EXTRAS) <= set(fields.get_all("Provides-Extra"))


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_asks_for_what_pyproject_lists(backend, tmp_path: Path, extra: str):
    folder = backend.prepare_metadata_for_build_wheel(str(tmp_path))
    fields = Parser().parsestr((tmp_path / folder / "METADATA").read_text(encoding="utf-8"))
    asked = [line for line in fields.get_all("Requires-Dist") if line.endswith(f"extra == '{extra}'")]
    names = {line.partition(">")[0].partition("<")[0] for line in asked}
    assert names == {line.partition(">")[0].partition("<")[0] for line in read_extra(ROOT / "pyproject.toml", extra)}
    assert [line for line in fields.get_all("Requires-Dist") if "extra ==" not in line] == []
