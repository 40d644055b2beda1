"""What a stranger's checkout must and must not hold."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from _pack import ROOT
from templates import templates

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


REPOSITORY = "https://github.com/realisr/RealISR"
PAGES = (
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"),
    *("docs/command-line.md", "docs/evaluate.md"),
)


EXPANDED = {
    *("Agent Refinement Candidates", "Agent Refinement Result", "Agent Refinement Round"),
    *("Compare Branch", "Compare End", "Compare Results"),
}
"""Nodes that Agent Refinement Loop and Compare Methods expand into; nobody places them."""


def anchors(page: str) -> set[str]:
    """What a link may name behind # on a page, as GitHub makes it from the headings."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_addresses_of_the_repository_name_files_that_are_in_it():
    address = re.compile(rf"{re.escape(REPOSITORY)}/(?:blob|raw|tree)/main/([\w./-]*[\w/-])(?:#([\w-]+))?")
    named = {
        (path.relative_to(ROOT).as_posix(), *match.groups())
        for path in text_files()
        for match in address.finditer(path.read_text(encoding="utf-8"))
    }
    assert named
    for where, file, anchor in named:
        assert (ROOT / file).exists(), f"{where} names {file}"
        assert anchor is None or anchor in anchors((ROOT / file).read_text(encoding="utf-8")), f"{where}: #{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_files_and_make_targets_that_exist(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    quoted = [name for name in re.findall(r"`([\w.-]+/[\w./-]*)`", text) if name.partition("/")[0] in folders]
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    ignored = {"demo_output/"}  # made by a run
    missing = [name for name in quoted if name not in ignored and not (ROOT / name).exists()]
    assert missing + [name for name in linked if not (ROOT / page).parent.joinpath(name).exists()] == []
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    asked = re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)
    assert set(asked) <= set(targets)


def test_the_readme_lists_every_node_and_workflow():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    texts = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    in_tables = "\n".join(line.split("|")[1] for line in readme.splitlines() if line.startswith("|"))
    named = {name.strip() for name in re.split(r"[,\n]", in_tables)}
    names = {node["display_name"] for node in texts.values()} | {each.name for each in templates()}
    assert names - named == EXPANDED
    shown = {name for name in named if re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", name)}
    assert shown <= names


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
