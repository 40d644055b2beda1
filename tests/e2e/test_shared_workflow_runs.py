"""Shipped workflows of what serves all methods, on a real ComfyUI: degrading, scoring, the agent by itself."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from PIL import Image

from _pack import ROOT
from comfy_server import ComfyServer
from demo import node_of
from harness.agent_loop import numbered
from harness.chat_server import ChatServer


def workflow(name: str, server: ComfyServer) -> dict[str, Any]:
    """A workflow in API form on a small picture."""
    graph: dict[str, Any] = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    ramp = np.stack(np.broadcast_arrays(np.linspace(0, 255, 96), np.linspace(255, 0, 80)[:, None], 90.0), -1)
    picture = server.client.upload_image(Image.fromarray(ramp.astype(np.uint8)), "shared_ramp.png")
    for node in graph.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = picture
    return graph


def test_both_pictures_are_scored(server: ComfyServer):
    graph = workflow("degrade_and_score", server)
    result = server.client.run(graph)
    assert server.client.image(result.images(node_of(graph, "SaveImage"))[0]).size == (96, 80)
    scores = {
        node["inputs"]["images"][0]: result.outputs[name]["score_table"][0]["sections"][0]["rows"][0]["scores"][0]
        for name, node in graph.items()
        if node["class_type"] == "RealISR_NRIQAScore"
    }
    before, after = (scores[node_of(graph, f"RealISR_{node}")] for node in ("UpscaleForRestoration", "AlignColors"))
    assert before != after


def test_one_round_of_the_agent(server: ComfyServer):
    """The photo, the last result and its prompt are sent; prompt, changes and reason are shown."""
    graph = workflow("agent_one_round", server)
    with ChatServer(default=numbered) as chat:
        graph[node_of(graph, "RealISR_ChatEndpoint")]["inputs"].update(
            base_url=chat.url, key_variable="REALISR_UNSET_KEY"
        )
        result = server.client.run(graph)
    (request,) = chat.requests
    assert len(request.images) == 2
    answer = json.loads(numbered(request))
    shown = [output["text"][0] for name, output in result.outputs.items() if graph[name]["class_type"] == "PreviewAny"]
    assert sorted(shown) == sorted(str(answer[field]) for field in ("prompt", "changes", "reason"))
