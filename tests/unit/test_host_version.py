"""A ComfyUI that is too old is refused by name, before anything of the pack is imported."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest

from _pack import ROOT, load_pack
from harness.schemas import extension

MINIMUM = load_pack().MINIMUM_COMFYUI


@pytest.mark.parametrize("version", ["0.3.64", "0.22.0", "0.26.0", "0.26", "v0.26.9-dev", "0.26.1+git.abc"])
def test_an_older_comfyui_is_refused(monkeypatch: pytest.MonkeyPatch, version: str):
    monkeypatch.setitem(sys.modules, "comfyui_version", SimpleNamespace(__version__=version))
    with pytest.raises(ImportError) as caught:
        extension()
    assert f"RealISR needs ComfyUI {MINIMUM} or newer and this is {version}. Update ComfyUI" in str(caught.value)


def test_a_comfyui_without_a_version_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "comfyui_version", None)
    with pytest.raises(ImportError, match=f"{re.escape(MINIMUM)} or newer and this is an older one without a version"):
        extension()


@pytest.mark.parametrize(
    "version",
    [
        MINIMUM,
        "0.27",
        "0.27.1",
        "0.30.0",
        "0.100.0",
        "1.0",
        "v0.28.0",
        "0.27.0-dev",
        "0.30.0rc1",
        "0.28.0.post3",
        "main",
    ],
)
def test_a_newer_or_unknown_one_is_not(version: str):
    load_pack().check_comfyui(version)


def test_pyproject_and_readme_name_the_same_minimum():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'^requires-comfyui = "(.+)"$', pyproject, re.MULTILINE) == [f">={MINIMUM}"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"ComfyUI (\d[\d.]*\d) or newer", readme) == [MINIMUM.removesuffix(".0")]


def test_nothing_else_is_asked_for_at_import():
    """The pack's own import must not fail first in a ComfyUI that lacks what the nodes use."""
    source = (ROOT / "__init__.py").read_text(encoding="utf-8")
    assert re.findall(r"^(?:from|import) (\S+)", source, re.MULTILINE) == ["re"]
