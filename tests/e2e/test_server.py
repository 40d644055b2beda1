"""The pack in a running ComfyUI, and the harness that talks to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from _pack import ROOT
from comfy_server import ComfyServer, PromptError, PromptInterrupted
from harness.schemas import pack_nodes
from harness.waiting import wait_until

INVERT = {
    "1": {"class_type": "LoadImage", "inputs": {}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "inverted"}},
}


PARENT = """
import subprocess, sys, time
sys.path[:0] = {folders!r}
from comfy_server import die_with_parent
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], preexec_fn=die_with_parent)
print(child.pid, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIG_DFL)
    except ProcessLookupError:
        return False
    # A zombie that nobody has reaped yet is gone too.
    status = Path(f"/proc/{pid}/status")
    return not (status.exists() and "\nState:\tZ" in status.read_text())


def test_every_node_is_registered(server: ComfyServer, host):
    info = server.client.object_info()
    ours = {name: node for name, node in info.items() if name.startswith("RealISR_")}
    assert ours.keys() == {node.GET_SCHEMA().node_id for node in pack_nodes()}
    assert {node["python_module"] for node in ours.values()} == {"custom_nodes.realisr"}
    assert [line for line in server.log().splitlines() if "IMPORT FAILED" in line or "Cannot import" in line] == []


def test_the_server_sees_none_of_the_packs_own_modules(server: ComfyServer):
    """As at a user's: a node that imported from scripts/, dev/ or tests/ by name would fail here too."""
    assert os.pathsep.join(sys.path).count(str(ROOT / "dev"))
    assert server.process is not None
    variables = Path(f"/proc/{server.process.pid}/environ")
    if not variables.exists():
        pytest.skip("no /proc on this system")
    assert str(ROOT / "dev") not in variables.read_text(encoding="utf-8", errors="replace")


def test_runs_a_workflow_and_fetches_its_image(server: ComfyServer):
    name = server.client.upload_image(Image.new("RGB", (20, 10), (255, 255, 0)), "yellow.png")
    seen: list[str] = []
    workflow = {**INVERT, "1": {"class_type": "LoadImage", "inputs": {"image": name}}}
    result = server.client.run(workflow, on_message=lambda kind, _: seen.append(kind))
    (file,) = result.images("3")
    image = server.client.image(file)
    assert image.size == (20, 10)
    assert image.getpixel((7, 3)) == (0, 0, 255)
    assert "execution_success" in seen


def test_a_refused_workflow_says_which_node_and_why(server: ComfyServer):
    workflow = {**INVERT, "1": {"class_type": "LoadImage", "inputs": {"image": "no_such.png"}}}
    with pytest.raises(PromptError, match=r"node 1 \(LoadImage\).*no_such\.png") as caught:
        server.client.run(workflow)
    assert caught.value.node_type == "LoadImage"


def test_a_failing_node_says_what_it_raised(server: ComfyServer):
    workflow = {
        "1": {"class_type": "RealISRTest_RandomImage", "inputs": {"seed": 0, "width": 8, "height": 8, "batch": 1}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "../../outside"}},
    }
    with pytest.raises(PromptError, match="outside the output folder") as caught:
        server.client.run(workflow)
    assert (caught.value.node_id, caught.value.node_type) == ("2", "SaveImage")


def test_a_run_can_be_cancelled_and_the_next_one_works(server: ComfyServer):
    slow = {"1": {"class_type": "RealISRTest_Wait", "inputs": {"seconds": 600.0}}}
    seen: list[float] = []

    def cancel(kind: str, data: dict) -> None:
        if kind == "progress":
            seen.append(data["value"] / data["max"])
            server.client.interrupt()

    with pytest.raises(PromptInterrupted, match="RealISRTest_Wait"):
        server.client.run(slow, on_message=cancel)
    assert max(seen) < 0.5
    done = server.client.run({"1": {"class_type": "RealISRTest_Wait", "inputs": {"seconds": 0.1}}})
    assert done.progress("1")[-1] == (1, 1)


def test_a_server_that_cannot_start_says_why(start_server):
    refusal = pytest.raises(RuntimeError, match="unrecognized arguments: --no-such-option")
    with refusal, start_server("--no-such-option"):
        pass


def test_the_server_ends_with_a_process_that_is_killed():
    """A test run that dies leaves no server behind."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(folders=[str(ROOT / "scripts"), str(ROOT / "dev")])],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive(child))
