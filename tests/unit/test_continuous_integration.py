"""The files that GitHub, pre-commit and the registry read say what the project is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from _pack import ROOT, load_pack
from host_env import read_extra

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def triggers(workflow: dict[Any, Any]) -> set[str]:
    return set(workflow[True])  # YAML 1.1 reads the key `on` as a truth value


def commands(workflow: dict[Any, Any]) -> list[str]:
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_exists(path: Path):
    for command in commands(read(path)):
        assert set(re.findall(r"\bmake ([a-z-]+)", command)) <= TARGETS
        for script in re.findall(r"(?:realisr/)?(\.ci/\w+)", command):
            assert (ROOT / script).is_file()


def test_each_is_run_when_it_should_be():
    by_name = {path.stem: read(path) for path in WORKFLOWS}
    assert {name: triggers(each) for name, each in by_name.items()} == {
        "checks": {"push", "pull_request"},
        "nightly": {"schedule", "workflow_dispatch"},
        "publish": {"push"},
    }
    assert by_name["publish"][True]["push"] == {"tags": ["v*"]}
    assert {"make lint", "make test-fast"} <= set(commands(by_name["checks"]))


def test_the_oldest_comfyui_is_among_those_tested():
    hosts = read(GITHUB / "workflows" / "nightly.yml")["jobs"]["hosts"]["strategy"]["matrix"]["include"]
    assert hosts[0]["comfyui"] == f"v{load_pack().MINIMUM_COMFYUI}"
    oldest_python = re.search(r'^requires-python = ">=(.+)"$', PYPROJECT, re.MULTILINE)
    assert oldest_python is not None
    assert hosts[0]["python"] == oldest_python[1]


def test_the_lowest_versions_are_those_that_are_asked_for(tmp_path: Path):
    (tmp_path / "requirements.txt").write_text("numpy>=1.25.0\ntorch\nopenai>=1.2\n# pillow>=9\ntokenizers>=0.13\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "dev" / "floors.py"), str(tmp_path / "requirements.txt")],
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(line.split("==") for line in done.stdout.splitlines())
    assert found["numpy"] == "1.25.0"
    assert found["torch"] == "2.5.0"
    assert "pillow" not in found and "tokenizers" not in found
    own = [
        line
        for name in ("agent", "quality", "without-dependencies")
        for line in read_extra(ROOT / "pyproject.toml", name)
    ]
    for asked in map(Requirement, own):
        assert asked.specifier.contains(found[asked.name])
        assert not asked.specifier.contains("0")
    assert found["openai"] == "1.60", "the higher of two bounds"


def test_what_the_publish_job_looks_for_is_there():
    version = re.search(r'^version = "(.+)"$', PYPROJECT, re.MULTILINE)
    assert version is not None
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", version[1]]


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_form_is_complete(name: str):
    form = read(GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    assert all(field["attributes"]["label"] for field in form["body"])
    required = {field["id"] for field in form["body"] if field.get("validations", {}).get("required")}
    assert required >= {"bug": {"versions", "workflow", "log"}, "feature": {"job"}}[name]


def test_pre_commit_runs_the_ruff_that_lint_runs():
    (hooks,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert {hook["id"] for hook in hooks["hooks"]} == {"ruff-check", "ruff-format"}
    pinned = {each.name: each for each in map(Requirement, read_extra(ROOT / "pyproject.toml", "test"))}
    assert pinned["ruff"].specifier.contains(hooks["rev"].removeprefix("v"))


@pytest.mark.parametrize(("key", "largest"), [("Icon", (400, 400)), ("Banner", (2100, 900))])
def test_the_registrys_pictures_are_there_and_of_its_sizes(key: str, largest: tuple[int, int]):
    address = re.search(
        rf'^{key} = "https://raw\.githubusercontent\.com/realisr/RealISR/main/(.+)"$', PYPROJECT, re.MULTILINE
    )
    assert address is not None
    path = ROOT / address[1]
    with Image.open(path) as picture:
        width, height = picture.size
    assert width <= largest[0]
    assert height <= largest[1]
    assert width * largest[1] == height * largest[0]
    assert path.stat().st_size < 100_000
