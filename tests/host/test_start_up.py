"""The pack inside ComfyUI's own loader, in a process of its own."""

from __future__ import annotations

import compileall
import importlib.util
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from typing import Any

import pytest

import archive
from _pack import ROOT
from harness.schemas import pack_nodes

HEAVY = {
    "accelerate",
    "bitsandbytes",
    "cv2",
    "diffusers",
    "imageio",
    "kornia",
    "lpips",
    "matplotlib",
    "openai",
    "pandas",
    "peft",
    "pyiqa",
    "skimage",
    "sklearn",
    "timm",
    "torchvision",
    "transformers",
    "webdataset",
}


@dataclass(frozen=True)
class StartUp:
    """What ComfyUI made of the registry's archive of the pack, and of a broken one (see benchmarks/import_time.py)."""

    pack: dict[str, Any]
    broken: dict[str, Any]
    log: str


@pytest.fixture(scope="module")
def start_up(comfyui, tmp_path_factory) -> StartUp:
    spec = importlib.util.spec_from_file_location("import_time", ROOT / "benchmarks" / "import_time.py")
    assert spec is not None and spec.loader is not None
    import_time = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(import_time)

    base = tmp_path_factory.mktemp("start_up")
    pack = base / "custom_nodes" / "Real-ISR v0.1 (my copy).2"
    try:
        archive.write_archive(base / "pack.zip")
    except subprocess.CalledProcessError:
        pytest.skip("not a git checkout")
    with zipfile.ZipFile(base / "pack.zip") as written:
        written.extractall(pack)
    compileall.compile_dir(pack, quiet=1)  # as after a first start
    broken = base / "custom_nodes" / "broken"
    broken.mkdir()
    (broken / "__init__.py").write_text("import no_such_module", encoding="utf-8")
    (of_pack, of_broken), log = import_time.measure([pack, broken], comfyui.comfyui, base)
    return StartUp(of_pack, of_broken, log)


@pytest.mark.slow
def test_the_archive_loads_from_a_folder_with_dots_spaces_and_hyphens(start_up, host):
    assert start_up.pack["loaded"] is True, start_up.log
    assert start_up.pack["nodes"] == sorted(node.GET_SCHEMA().node_id for node in pack_nodes())


def test_a_broken_pack_is_seen(start_up):
    assert start_up.broken["loaded"] is False
    assert "no_such_module" in start_up.log


def test_imports_no_heavy_library(start_up):
    assert {name.partition(".")[0] for name in start_up.pack["modules"]} & HEAVY == set()


def test_imports_nothing_that_comfyui_has_not_imported(start_up):
    """Every library of the pack's own would be waited for at each start. The target in time is the benchmark's."""
    new = {name.partition(".")[0] for name in start_up.pack["modules"]}
    own = {name for name in new if "_x_" in name or "/" in name or "\\" in name}
    assert own
    assert new - own - sys.stdlib_module_names - {"comfyui_version"} == set()
