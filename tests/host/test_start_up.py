"""The pack inside ComfyUI's own loader, in a process of its own."""

from __future__ import annotations

import compileall
import importlib.util
import shutil
from dataclasses import dataclass
from typing import Any

import pytest

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
LEFT_OUT = shutil.ignore_patterns(".git", ".*_cache", "__pycache__", "tests", "runs", "demo_output")


@dataclass(frozen=True)
class StartUp:
    """What ComfyUI made of a copy of the pack, and of a broken one (see benchmarks/import_time.py)."""

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
    shutil.copytree(ROOT, pack, ignore=LEFT_OUT)
    compileall.compile_dir(pack, quiet=1)  # as after a first start
    broken = base / "custom_nodes" / "broken"
    broken.mkdir()
    (broken / "__init__.py").write_text("import no_such_module", encoding="utf-8")
    (of_pack, of_broken), log = import_time.measure([pack, broken], comfyui.comfyui, base)
    return StartUp(of_pack, of_broken, log)


def test_loads_from_a_folder_with_dots_spaces_and_hyphens(start_up, host):
    assert start_up.pack["loaded"] is True, start_up.log
    assert start_up.pack["nodes"] == sorted(node.GET_SCHEMA().node_id for node in pack_nodes())


def test_a_broken_pack_is_seen(start_up):
    assert start_up.broken["loaded"] is False
    assert "no_such_module" in start_up.log


def test_imports_no_heavy_library(start_up):
    assert {name.partition(".")[0] for name in start_up.pack["modules"]} & HEAVY == set()


def test_is_a_small_part_of_start_up(start_up):
    # CPU time against the host's own in the same process, so that a busy machine does not fail it. The target of
    # 50 ms is benchmarks/import_time.py's; it is about half a percent of what the host takes.
    assert start_up.pack["cpu_milliseconds"] < 0.02 * start_up.pack["host_cpu_milliseconds"]
