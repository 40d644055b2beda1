"""The registry's archive holds the runtime and nothing else, and no text in it points at what it leaves out."""

from __future__ import annotations

import ast
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import archive
from _pack import ROOT

RUNTIME = ("nodes", "host", "models", "services", "js", "locales", "workflows", "subgraphs")
"""Folders that go in whole."""

BESIDE = {
    "__init__.py",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "SECURITY.md",
    "docs/open-decisions.md",
    "weights/vosr_nano.safetensors",
}
TEXT_SUFFIXES = {".py", ".md", ".json", ".js", ".css", ".txt", ""}

FLAGGED_MODULES = {"ctypes", "ftplib", "http", "marshal", "pip", "pty", "requests", "socket", "subprocess", "telnetlib"}
FLAGGED_NAMES = {"__import__", "compile", "eval", "exec"}
FLAGGED_OF_OS = re.compile(r"system|popen|fork.*|exec.*|spawn.*|posix_spawn.*")

URL = re.compile(r"https?://[^\s)\"'`>]+")


@pytest.fixture(scope="module")
def archived() -> list[str]:
    try:
        return archive.archived_files()
    except subprocess.CalledProcessError:
        pytest.skip("not a git checkout")


def flagged(source: str) -> list[str]:
    """What a scanner of the registry would stop at: other programs, the network, code made from text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            of = node.module or "" if isinstance(node, ast.ImportFrom) and node.level == 0 else None
            names = [alias.name for alias in node.names]
            modules = names if isinstance(node, ast.Import) else [f"{of}.{name}" for name in names] if of else []
            for module in modules:
                top, _, rest = module.partition(".")
                if top in FLAGGED_MODULES or (top == "urllib" and rest.partition(".")[0] != "parse"):
                    found.append(f"line {node.lineno} imports {module}")
                if top == "os" and FLAGGED_OF_OS.fullmatch(rest):
                    found.append(f"line {node.lineno} imports {module}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FLAGGED_NAMES:
            found.append(f"line {node.lineno} calls {node.func.id}")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "os" and FLAGGED_OF_OS.fullmatch(node.attr):
                found.append(f"line {node.lineno} uses os.{node.attr}")
            if (node.value.id, node.attr) == ("urllib", "request"):
                found.append(f"line {node.lineno} uses urllib.request")
    return found


def left_out_mentions(text: str, left_out: set[str]) -> Iterator[str]:
    """Mentions of files or folders that the archive leaves out. An address on the web may name them.

    left_out: paths of such files, relative to the pack.
    """
    folders = {name.partition("/")[0] for name in left_out if "/" in name}
    spoken = URL.sub("", text)
    for match in re.finditer(r"(?<![\w/.-])(?:\./)?(\.?\w[\w.-]*(?:/[\w.-]*)*)", spoken):
        name = match[1].rstrip(".")
        named_folder = name.endswith("/") and name.partition("/")[0] in folders
        if name in left_out or (named_folder and any(path.startswith(name) for path in left_out)):
            yield name


def mentioned_files(text: str) -> set[str]:
    """Files of the pack that a text names. Not of models/, which a text means ComfyUI's folder by."""
    folders = "|".join(folder for folder in RUNTIME if folder != "models")
    return set(re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]*\.\w+)", URL.sub("", text)))


def test_it_holds_the_runtime_whole_and_nothing_else(archived):
    whole = {name for name in archive.checkout_files() if name.partition("/")[0] in RUNTIME}
    assert set(archived) == whole | BESIDE
    assert {name.rpartition(".")[2] for name in whole} <= {"css", "jpg", "js", "json", "md", "py", "txt"}


def test_the_file_holds_what_is_listed(archived, tmp_path: Path):
    archive.write_archive(tmp_path / "pack.zip")
    with zipfile.ZipFile(tmp_path / "pack.zip") as written:
        assert written.namelist() == archived
        assert written.read("nodes/vosr.py") == (ROOT / "nodes" / "vosr.py").read_bytes()


def test_patterns_are_gitignores(tmp_path: Path):
    """A folder's content with one file taken back in, and names that only begin alike."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".comfyignore").write_text(".*\n/docs/*\n!/docs/kept.md\n/dev/\n", encoding="utf-8")
    for name in ("docs/kept.md", "docs/other.md", "dev/a.py", "models/dev/b.py", "devs.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert archive.archived_files(tmp_path) == ["devs.py", "docs/kept.md", "models/dev/b.py"]


def test_nothing_in_it_alarms_a_scanner(archived):
    found = {
        f"{name}: {complaint}"
        for name in archived
        if name.endswith(".py")
        for complaint in flagged((ROOT / name).read_text(encoding="utf-8"))
    }
    assert found == set()


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess",
        "def f():\n    from subprocess import run",
        "import urllib.request",
        "import urllib",
        "from urllib import request",
        "from urllib.request import urlopen",
        "import http.client",
        "import os\nos.system('x')",
        "from os import execv",
        "eval('1')",
        "exec('1')",
        "__import__('x')",
    ],
)
def test_what_alarms_is_found(source: str):
    assert flagged(source)


@pytest.mark.parametrize(
    "source", ["from urllib.parse import urlsplit", "model.eval()", "import os\nos.environ", "from . import http"]
)
def test_what_does_not_is_let_through(source: str):
    assert flagged(source) == []


def test_no_text_in_it_points_at_what_it_leaves_out(archived):
    left_out = set(archive.checkout_files()) - set(archived)
    found = {
        f"{name}: {mention}"
        for name in archived
        if Path(name).suffix in TEXT_SUFFIXES
        for mention in left_out_mentions((ROOT / name).read_text(encoding="utf-8"), left_out)
    }
    assert found == set()


LEFT_OUT = {"scripts/restore.py", "benchmarks/RESULTS.md", "Makefile", "tests/golden/a.json", ".ci/run"}


@pytest.mark.parametrize(
    "text",
    [
        "run scripts/restore.py",
        "see `benchmarks/RESULTS.md`.",
        "[b](benchmarks/RESULTS.md)",
        "in tests/golden/",
        "the Makefile",
    ],
)
def test_a_mention_is_found(text: str):
    assert list(left_out_mentions(text, LEFT_OUT))


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/realisr/RealISR/blob/main/scripts/restore.py",
        "../../scripts/app.js",
        "FLUX.1-dev/",
        "tests",
        "models/tests/a.json",
    ],
)
def test_other_text_is_fine(text: str):
    assert list(left_out_mentions(text, LEFT_OUT)) == []


def test_every_file_of_the_pack_that_its_texts_name_is_in_it(archived):
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in archived if Path(name).suffix in TEXT_SUFFIXES}
    assert {f"{name}: {file}" for name in pages for file in mentioned_files(pages[name]) - set(archived)} == set()
    assert any(mentioned_files(text) for text in pages.values())


def test_every_link_in_its_pages_is_in_it(archived):
    missing = []
    for name in archived:
        if not name.endswith(".md"):
            continue
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", (ROOT / name).read_text(encoding="utf-8")):
            # ComfyUI reads a help page's pictures from the folder above the page's own.
            page = ROOT / name if not name.startswith("js/docs/") else (ROOT / name).parent
            path = page.parent.joinpath(target).resolve()
            if not path.is_relative_to(ROOT) or path.relative_to(ROOT).as_posix() not in archived:
                missing.append(f"{name}: {target}")
    assert missing == []
