"""What a stranger's checkout must and must not hold."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from _pack import ROOT

MACHINE_PATH = re.compile(
    r"(?<![\w.$}~/-])/(?:home|root|Users|work|tmp|mnt|srv)/[\w.]+|\b[A-Z]:\\{1,2}(?:Users|models|ComfyUI)"
)
TEXT_SUFFIXES = {".py", ".md", ".json", ".toml", ".js", ".css", ".yml", ".yaml", ".txt", ".cfg", ".sh", ""}
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def text_files() -> list[Path]:
    """Files of the checkout that git tracks or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.suffix in TEXT_SUFFIXES and path.is_file() and path != Path(__file__)]


def test_no_file_names_a_path_of_someones_machine():
    found = {
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in text_files()
        for match in MACHINE_PATH.finditer(path.read_text(encoding="utf-8"))
    }
    assert found == set()


@pytest.mark.parametrize("text", ["x = '/home/ann/models'", "see /root/.cache", r"path: C:\models", "cd /tmp/w"])
def test_a_machine_path_is_found(text: str):
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["/path/to/ComfyUI", "https://x.org/home/page", "~/.cache", "and/or", "$HOME/tmp/x"])
def test_other_paths_are_fine(text: str):
    assert not MACHINE_PATH.search(text)


def test_the_pack_needs_nothing_that_comfyui_does_not_bring():
    assert "\ndependencies = []\n" in PYPROJECT
    assert not (ROOT / "requirements.txt").exists()


def test_the_registry_metadata_names_the_pack():
    name = re.search(r'^name = "(.+)"$', PYPROJECT, re.MULTILINE)
    assert name is not None
    assert "comfyui" not in name[1].lower()
    assert re.search(r"^\[tool\.comfy\]$", PYPROJECT, re.MULTILINE)
    # WEB_DIRECTORY already registers js/; a `web` key would register it again under a second name.
    assert not re.search(r"^web = ", PYPROJECT, re.MULTILINE)


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0" in text
    assert "END OF TERMS AND CONDITIONS" in text
