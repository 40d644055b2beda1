"""PURE in a running ComfyUI: its workflows with small released files, what a browser is told meanwhile, and cancel."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from _pack import ROOT
from comfy_server import ComfyServer, PromptError, PromptInterrupted
from demo import node_of
from harness import pure
from harness.pure import CAPTION, SENTENCE
from harness.server_memory import READABLE, require_freed, resident_megabytes
from templates import template

API = ROOT / "workflows" / "api"
WORKFLOWS = ["pure_512", "pure_entropy_heatmap", "pure_tiled"]
RESTORER, LOADER = "RealISR_ARTokenRestorer", "RealISR_LoadARRestorer"


@pytest.fixture(scope="module")
def released(server: ComfyServer) -> None:
    pure.save_released_files(server.models)


def read(name: str) -> dict[str, Any]:
    return json.loads((API / f"{name}.json").read_text(encoding="utf-8"))


def with_picture(server: ComfyServer, graph: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    ramp = np.stack(np.broadcast_arrays(np.linspace(0, 255, width), np.linspace(255, 0, height)[:, None], 90.0), -1)
    name = server.client.upload_image(Image.fromarray(ramp.astype(np.uint8)), f"ramp_{width}x{height}.png")
    graph[node_of(graph, "LoadImage")]["inputs"]["image"] = name
    return graph


def in_small_squares(graph: dict[str, Any], size: int = 64) -> dict[str, Any]:
    """The workflow at a size a CPU is quick with: the squares are what it draws, whatever their size."""
    inputs = graph[node_of(graph, RESTORER)]["inputs"]
    inputs |= {"tiling": "custom", "tiling.tile_size": size, "tiling.tile_overlap": size // 8}
    return graph


def pictures(server: ComfyServer, result, graph: dict[str, Any], kind: str = "SaveImage") -> list[Image.Image]:
    nodes = sorted(number for number, node in graph.items() if node["class_type"] == kind)
    return [server.client.image(file) for number in nodes for file in result.images(number)]


def texts(result, graph: dict[str, Any]) -> list[str]:
    """What the nodes that show text show, in order."""
    nodes = sorted(number for number, node in graph.items() if node["class_type"] == "PreviewAny")
    return [result.outputs[number]["text"][0] for number in nodes]


def test_every_pure_workflow_is_run_here():
    assert sorted(path.stem for path in API.glob("pure_*.json")) == WORKFLOWS


def test_the_settings_are_the_papers():
    for name in WORKFLOWS:
        graph = read(name)
        inputs = graph[node_of(graph, RESTORER)]["inputs"]
        chosen = {key: inputs[key] for key in inputs if key.startswith("sampling")}
        assert chosen == {
            "sampling": "entropy top-k",
            "sampling.k_min": 1,
            "sampling.k_max": 2000,
            "sampling.mu": 5,
        }
        assert (inputs["temperature"], inputs["guidance_scale"], inputs["text_top_k"]) == (0.9, 0.8, 1)
        loader = graph[node_of(graph, LOADER)]["inputs"]
        assert (loader["model_name"], loader["vq_name"]) == (pure.FOLDER, "auto (vq_ds8_c2i)")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_notes_name_the_files(name: str):
    drawn = json.loads(template(name).path.read_text(encoding="utf-8"))
    notes = " ".join(node["widgets_values"][0] for node in drawn["nodes"] if node["type"] == "MarkdownNote")
    assert f"LLM/**{pure.FOLDER}**/" in notes and f"vae/**{pure.VQ_FILE}**" in notes


def test_512(server: ComfyServer, released):
    graph = in_small_squares(with_picture(server, read("pure_512"), 29, 37))
    graph[node_of(graph, RESTORER)]["inputs"]["resize.width"] = 58
    result = server.client.run(graph)
    (restored,) = pictures(server, result, graph)
    assert restored.size == (58, 74)
    assert np.asarray(restored).std() > 1
    assert texts(result, graph) == [SENTENCE, CAPTION]


@pytest.mark.slow
def test_512_as_shipped(server: ComfyServer, released):
    """All 4096 tokens of a square of 512 pixels, whatever the photo's shape."""
    graph = with_picture(server, read("pure_512"), 100, 60)
    result = server.client.run(graph)
    (restored,) = pictures(server, result, graph)
    assert restored.size == (512, 307)
    restorer = node_of(graph, RESTORER)
    assert result.progress(restorer)[-1] == (128 + 4096, 128 + 4096)
    assert result.previews, "a run of seconds shows what it has drawn"


def test_tiled(server: ComfyServer, released):
    graph = with_picture(server, read("pure_tiled"), 50, 40)
    inputs = graph[node_of(graph, RESTORER)]["inputs"]
    assert (inputs["tiling"], inputs["tiling.tile_size"], inputs["resize.scale"]) == ("custom", 512, 2)
    graph = in_small_squares(graph)
    result = server.client.run(graph)
    (restored,) = pictures(server, result, graph)
    assert restored.size == (100, 80)
    assert texts(result, graph) == [SENTENCE, CAPTION]


def test_entropy_heatmap(server: ComfyServer, released):
    graph = in_small_squares(with_picture(server, read("pure_entropy_heatmap"), 32, 32))
    graph[node_of(graph, RESTORER)]["inputs"]["resize.width"] = 64
    result = server.client.run(graph)
    restored, heatmap = pictures(server, result, graph)
    assert restored.size == heatmap.size == (64, 64)
    assert np.abs(np.asarray(restored, int) - np.asarray(heatmap, int)).mean() > 5


# --- while it runs ---------------------------------------------------------------------------------------------------


def text_messages(messages: list[bytes]) -> list[tuple[str, str]]:
    """(node, text) of the binary messages that carry text."""
    found = []
    for message in messages:
        (kind,) = struct.unpack(">I", message[:4])
        if kind == 3:
            (length,) = struct.unpack(">I", message[4:8])
            found.append((message[8 : 8 + length].decode(), message[8 + length :].decode()))
    return found


@pytest.fixture
def binary_messages(monkeypatch) -> list[bytes]:
    """Every binary message of the runs to come, with its kind in the first four bytes."""
    import websocket

    seen: list[bytes] = []
    original = websocket.WebSocket.recv

    def recv(self):
        message = original(self)
        if isinstance(message, bytes):
            seen.append(message)
        return message

    monkeypatch.setattr(websocket.WebSocket, "recv", recv)
    return seen


def long_run(server: ComfyServer, seed: int) -> tuple[dict[str, Any], str]:
    """The first workflow at 256 pixels: 1024 tokens, some seconds."""
    graph = in_small_squares(with_picture(server, read("pure_512"), 64, 64), 256)
    node = node_of(graph, RESTORER)
    graph[node]["inputs"] |= {"resize.width": 256, "seed": seed}
    return graph, node


@pytest.mark.slow
def test_tokens_text_and_rows_are_shown(server: ComfyServer, released, binary_messages):
    graph, node = long_run(server, seed=11)
    result = server.client.run(graph)
    shares = [value / total for value, total in result.progress(node)]
    assert shares == sorted(shares) and result.progress(node)[-1] == (128 + 1024, 128 + 1024)
    # How often the host reports depends on how fast it is; it does before the end.
    assert 0 < shares[0] < 1
    shown = text_messages(binary_messages)
    assert {number for number, _ in shown} == {node}
    assert shown[-1][1] == f"{SENTENCE} {CAPTION}"
    kinds = [struct.unpack(">I", message[:4])[0] for message in binary_messages]
    images = [place for place, kind in enumerate(kinds) if kind in (1, 2, 4)]
    assert images and max(place for place, kind in enumerate(kinds) if kind == 3) < images[0]


@pytest.mark.skipif(not READABLE, reason="reads the server's memory from /proc (Linux)")
def test_cancel_while_tokens_are_drawn(server: ComfyServer, released):
    small = in_small_squares(with_picture(server, read("pure_512"), 64, 64))
    small[node_of(small, RESTORER)]["inputs"]["resize.width"] = 64
    server.client.run(small)
    before = resident_megabytes(server)
    graph, node = long_run(server, seed=12)
    seen: list[float] = []
    cancelled = False

    def cancel_in_the_image(kind: str, data: dict) -> None:
        nonlocal cancelled
        if kind != "progress" or data["node"] != node:
            return
        seen.append(data["value"])
        if seen[-1] > 128 + 100 and not cancelled:
            server.client.interrupt()
            cancelled = True

    with pytest.raises(PromptInterrupted, match="ARTokenRestorer"):
        server.client.run(graph, on_message=cancel_in_the_image)
    assert cancelled and max(seen) < 128 + 1024
    small[node_of(small, RESTORER)]["inputs"]["seed"] = 99
    again = server.client.run(small)
    assert texts(again, small) == [SENTENCE, CAPTION]
    require_freed(server, before + 100)


def test_texts_that_do_not_go_together_are_refused_before_the_run(server: ComfyServer, released):
    graph = with_picture(server, read("pure_512"), 16, 16)
    graph[node_of(graph, RESTORER)]["inputs"] |= {"guidance": "none", "description": "A cat."}
    with pytest.raises(PromptError, match="guidance 'none' gives the model none") as raised:
        server.client.run(graph)
    assert str(raised.value).count("failed for node: ") == 2, "of the two inputs, not of all"
