"""The subgraph blueprints: ComfyUI publishes them, the frontend offers them, and one click places them."""

from __future__ import annotations

import json

import pytest

from _pack import ROOT
from arrange_workflows import SUBGRAPHS, graphs
from comfy_server import ComfyServer

NAMES = sorted(path.stem for path in SUBGRAPHS.glob("*.json"))

EXPOSED = {
    "Caption + patch prompts": {"resize", "tile_size", "seed"},
    "DreamSR two-stage": {"lora_name", "texture_start", "strength", "noise_seed"},
    "Restore photo (VOSR)": {"model_name", "resize", "resize.scale", "restoration_scale"},
    "VICR sampling": {"text", "resize", "resize.scale", "strength", "steps"},
}
"""Widgets that the outer node must show. The models of the others come in by sockets."""

PLACE = """
async ([name, position]) => {
    const { app } = window;
    await app.extensionManager.command.execute("Comfy.NewBlankWorkflow");
    const type = `SubgraphBlueprint.${name}`;
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    return type;
}
"""


def test_they_are_published(server: ComfyServer):
    listed = server.client.get("/global_subgraphs")
    ours = {each["name"] for each in listed.values() if each["info"]["node_pack"] == "custom_nodes.realisr"}
    assert ours == set(NAMES) >= set(EXPOSED)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_one_node_with_a_description(name: str):
    blueprint = json.loads((SUBGRAPHS / f"{name}.json").read_text(encoding="utf-8"))
    (node,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert (node["type"], node["title"]) == (subgraph["id"], name) and subgraph["name"] == name
    assert blueprint["extra"]["BlueprintDescription"] and "realisr" in blueprint["extra"]["BlueprintSearchAliases"]
    shown = {widget for _, widget in node["properties"]["proxyWidgets"]}
    assert EXPOSED[name] <= shown


def test_names_of_subgraphs_differ():
    ids = [
        graph_id
        for folder in (SUBGRAPHS, ROOT / "workflows")
        for path in folder.glob("*.json")
        for graph_id, _ in graphs(json.loads(path.read_text(encoding="utf-8")))
        if graph_id is not None
    ]
    assert len(ids) == len(set(ids)) > 10
