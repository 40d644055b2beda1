"""The shipped workflows run on a real ComfyUI: the nano ones as they are, the others with small released files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from _pack import ROOT
from _scores import Score
from comfy_server import ComfyServer
from demo import EXAMPLE_PHOTO, node_of
from harness.released import save_released_files
from templates import template, templates

API = ROOT / "workflows" / "api"
NANO = ["vosr_nano_quickstart", "vosr_nano_restore"]
RELEASED = ["vosr_multi_step", "vosr_one_step", "vosr_tiled_4k"]
SAMPLER = "RealISR_RestorationCFGSampler"


@pytest.fixture(scope="module")
def released_files(server: ComfyServer) -> None:
    save_released_files(server.models)


def read(name: str) -> dict[str, Any]:
    return json.loads((API / f"{name}.json").read_text(encoding="utf-8"))


def with_picture(server: ComfyServer, graph: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The workflow on a small picture of its own, of a size that is no multiple of anything."""
    width, height = size
    ramp = np.stack(np.broadcast_arrays(np.linspace(0, 255, width), np.linspace(255, 0, height)[:, None], 90.0), -1)
    name = server.client.upload_image(Image.fromarray(ramp.astype(np.uint8)), f"ramp_{width}x{height}.png")
    graph[node_of(graph, "LoadImage")]["inputs"]["image"] = name
    return graph


def saved(server: ComfyServer, graph: dict[str, Any]) -> Image.Image:
    """What the workflow's Save Image wrote."""
    (file,) = server.client.run(graph).images(node_of(graph, "SaveImage"))
    return server.client.image(file)


def test_every_workflow_is_run():
    """Here or in a file beside this one, which names it."""
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert [path.stem for path in API.glob("*.json") if f'"{path.stem}"' not in tests] == []


@pytest.mark.slow
def test_the_quickstart_runs_as_it_is_and_repairs(server: ComfyServer):
    graph, example = read("vosr_nano_quickstart"), Image.open(EXAMPLE_PHOTO)
    result = server.client.run(graph)
    (compared,) = result.outputs[node_of(graph, "ImageCompare")]["a_images"]
    before = server.client.image(compared)
    after = server.client.image(result.images(node_of(graph, "SaveImage"))[0])
    assert before.size == after.size == example.size
    bicubic, restored = (Score.of(np.asarray(picture), np.asarray(example)) for picture in (before, after))
    assert restored.psnr > bicubic.psnr + 1
    assert restored.ssim > bicubic.ssim


def test_nano_restores_a_photo_of_any_size(server: ComfyServer):
    graph = with_picture(server, read("vosr_nano_restore"), (45, 67))
    assert saved(server, graph).size == (90, 134)


@pytest.mark.parametrize("name", ["vosr_multi_step", "vosr_one_step"])
def test_released_weights_enlarge_four_times(server: ComfyServer, released_files, name: str):
    graph = with_picture(server, read(name), (29, 37))
    assert saved(server, graph).size == (116, 148)


def test_the_wired_graph_is_the_sampler_node(server: ComfyServer, released_files):
    """25 euler steps on the simple schedule with core nodes, against the node that does it all."""
    wired = with_picture(server, read("vosr_multi_step"), (24, 20))
    whole = with_picture(server, read("vosr_one_step"), (24, 20))
    whole[node_of(whole, "RealISR_LoadVOSRModel")]["inputs"]["model_name"] = "VOSR_0.5B_ms"
    a, b = (np.asarray(saved(server, graph), np.int16) for graph in (wired, whole))
    assert a.std() > 1
    assert np.abs(a - b).max() <= 1


@pytest.mark.slow
def test_4k_runs_in_tiles(server: ComfyServer, released_files):
    """As shipped but for the width, which a CPU would take long over: 600 is still two tiles."""
    graph = with_picture(server, read("vosr_tiled_4k"), (96, 40))
    inputs = graph[node_of(graph, SAMPLER)]["inputs"]
    assert (inputs["resize.width"], inputs["resize.height"]) == (3840, 0)
    assert (inputs["tiling"], inputs["tiling.tile_size"]) == ("custom", 512)
    inputs["resize.width"] = 600
    assert saved(server, graph).size == (600, 250)


@pytest.mark.parametrize("name", [each.name for each in templates()])
def test_ui_files_are_tidy(name: str):
    """No node lies over another, each is inside at most one group, and a note explains the graph."""
    drawn = json.loads(template(name).path.read_text(encoding="utf-8"))
    boxes = {node["id"]: box(node) for node in drawn["nodes"]}
    overlaps = [(a, b) for a in boxes for b in boxes if a < b and overlap(boxes[a], boxes[b])]
    assert overlaps == []
    groups = [tuple(group["bounding"]) for group in drawn["groups"]]
    assert not any(overlap(a, b) for i, a in enumerate(groups) for b in groups[:i])
    assert any(node["type"] == "MarkdownNote" for node in drawn["nodes"])
    assert template(name).path.with_suffix(".jpg").is_file()


Box = tuple[float, float, float, float]
TITLE_HEIGHT = 30


def box(node: dict[str, Any]) -> Box:
    """(left, top, width, height) with the title bar, which lies above the node's position."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_HEIGHT, width, TITLE_HEIGHT + (0 if node["flags"].get("collapsed") else height)


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def test_the_notes_name_files_that_the_loaders_use():
    """What a note tells to download is what the loaders of its graph are set to."""
    for name in RELEASED:
        drawn = json.loads(template(name).path.read_text(encoding="utf-8"))
        notes = " ".join(node["widgets_values"][0] for node in drawn["nodes"] if node["type"] == "MarkdownNote")
        plain = notes.replace("**", "")
        chosen = [
            value
            for node in drawn["nodes"]
            if node["type"].startswith("RealISR_LoadVOSR")
            for value in node["widgets_values"]
            if "." in str(value)
        ]
        assert chosen
        assert [value for value in chosen if Path(value).as_posix() not in plain] == []
