"""scripts/restore.py over storage behind URLs and over a Ray cluster, where machines and clients are killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import restore
from _pack import ROOT
from harness.cluster import RayNodes, contents, processes_with, read_until, start_restore, storage, stored
from host_env import Host

PHOTOS = 12
GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "2": {"class_type": "RealISRTest_Wait", "inputs": {"image": ["1", 0], "seconds": 0.3}},
    "3": {
        "class_type": "ImageScaleBy",
        "inputs": {"image": ["2", 0], "upscale_method": "bicubic", "scale_by": 2},
    },
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "restored"}},
}


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(GRAPH), encoding="utf-8")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Their sizes differ, so that no two results are the same."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    chance = np.random.default_rng(7)
    for index in range(PHOTOS):
        pixels = chance.integers(0, 256, (12, 16 + index, 3), np.uint8)
        Image.fromarray(pixels).save(folder / ("more" if index % 3 == 0 else "") / f"{index:02}.png")
    return folder


@pytest.mark.slow
def test_a_node_and_the_driver_are_killed(server, tmp_path: Path, photos: Path, workflow: Path, monkeypatch):
    """Nothing is lost or doubled, and every byte is what one server makes without a cluster."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    alone = [str(photos), str(tmp_path / "one"), "--workflow", str(workflow), "--server", server.url]
    assert restore.main(alone) == 0
    expected = contents(tmp_path / "one")
    assert len(expected) == PHOTOS
    with storage() as (system, environment), RayNodes(2) as nodes:
        system.put(str(photos), "photos/in", recursive=True)
        other_name = server.url.replace("127.0.0.1", "localhost")
        arguments = ["s3://photos/in", "s3://photos/out", "--workflow", str(workflow), "--pause", "0.5"]
        arguments += ["--server", server.url, "--server", other_name, "--engine", "ray", "--address", nodes.address]
        driver = start_restore(arguments, environment)
        said = read_until(driver, done=2)
        assert driver.poll() is None, "".join(said)
        nodes.kill(0)
        said += read_until(driver, done=2)
        assert driver.poll() is None, "".join(said)
        driver.kill()
        driver.communicate(timeout=60)
        before = len(system.find("photos/out"))
        assert 4 <= before < PHOTOS
        report = tmp_path / "report.json"
        driver = start_restore([*arguments, "--report", str(report)], environment)
        out, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, out
        assert out.count("is there already") >= 4
        assert stored(system, "photos/out") == expected
    rows = json.loads(report.read_text(encoding="utf-8"))["photos"]
    assert [row["state"] for row in rows] == ["done"] * PHOTOS


OWNER = """
import sys
sys.path.insert(0, sys.argv[1])
from restoring.host import Host
from restoring.own_comfyui import OwnComfyUI
own = OwnComfyUI(sys.argv[2], cpu=True)
host = Host(own.url)
def answers():
    try:
        host.greet()
    except Exception:
        return False
    return True
print(own.ensure(answers, 300) or own.url, flush=True)
print(own.scratch, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs kill -9")
def test_a_comfyui_of_ones_own_ends_with_its_owner(comfyui: Host, server):
    """However the owner ends, and its files with it. The same folder runs another ComfyUI meanwhile."""
    command = [sys.executable, "-c", OWNER, str(ROOT / "scripts"), str(comfyui.comfyui)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), url
        scratch = Path(owner.stdout.readline().strip())
        assert (scratch / "input").is_dir()
        words = f"--port {url.rpartition(':')[2]}"
        assert len(processes_with(words)) == 3  # it and its guard, which are two
        owner.kill()
    deadline = time.monotonic() + 60
    while pids := processes_with(words):
        assert time.monotonic() < deadline, f"{pids} still run"
        time.sleep(0.1)
    assert not scratch.exists()
