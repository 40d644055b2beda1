"""The subgraph blueprints: ComfyUI publishes them, the frontend offers them, and one click places them."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from _pack import ROOT
from arrange_workflows import SUBGRAPHS, graphs
from comfy_frontend import Frontend
from comfy_server import ComfyServer

NAMES = sorted(path.stem for path in SUBGRAPHS.glob("*.json"))

EXPOSED = {
    "Compare all methods": {"scale", "vosr", "upscale_model", "prompt", "crops"},
    "Caption + patch prompts": {"resize", "tile_size", "seed"},
    "DreamSR two-stage": {"lora_name", "texture_start", "strength", "noise_seed"},
    "Restore photo (VOSR)": {"model_name", "resize", "resize.scale", "restoration_scale"},
    "VICR sampling": {"text", "resize", "resize.scale", "strength", "steps"},
}
"""Widgets that the outer node must show. The models of the others come in by sockets."""

EMPTY_TAB = "async () => { await window.app.extensionManager.command.execute('Comfy.NewBlankWorkflow'); }"
IN_A_FIELD = "() => ['INPUT', 'TEXTAREA'].includes(document.activeElement?.tagName)"
WIDGETS = "() => window.app.graph.nodes.map((node) => [node.title, (node.widgets ?? []).map(({ name }) => name)])"


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


def open_search(page: Page) -> None:
    """As a double click on the empty canvas does; one that comes while a new tab is still being drawn is lost."""
    for _ in range(10):
        page.keyboard.press("Escape")
        page.mouse.dblclick(500, 300)
        try:
            page.wait_for_function(IN_A_FIELD, timeout=5000)
        except PlaywrightTimeoutError:
            continue
        return
    raise AssertionError("a double click on the canvas opens no search")


def lay_down(page: Page) -> None:
    """Click, so that the new node no longer hangs at the pointer."""
    page.wait_for_timeout(300)
    for _ in range(10):
        page.mouse.click(700, 500)
        page.wait_for_timeout(200)
        if page.evaluate("() => window.app.canvas.state.ghostNodeId == null"):
            return
    raise AssertionError("the node still hangs at the pointer")


def test_the_search_finds_and_places_each(frontend: Frontend):
    page = frontend.page
    for name in NAMES:
        page.evaluate(EMPTY_TAB)
        page.wait_for_function("() => window.app.graph.nodes.length === 0")
        open_search(page)
        page.keyboard.type(name)
        page.get_by_text(name, exact=True).first.wait_for()
        page.wait_for_timeout(500)  # the list is sorted anew while it is typed
        page.keyboard.press("Enter")
        page.wait_for_function("() => window.app.graph.nodes.length === 1")
        ((title, widgets),) = page.evaluate(WIDGETS)
        assert title == name
        assert EXPOSED[name] <= set(widgets)
        lay_down(page)
        inside = json.loads((SUBGRAPHS / f"{name}.json").read_text(encoding="utf-8"))["definitions"]["subgraphs"][0]
        assert len(frontend.export_api()) == len(inside["nodes"])


def test_ids_of_subgraphs_differ():
    ids = [
        graph_id
        for folder in (SUBGRAPHS, ROOT / "workflows")
        for path in folder.glob("*.json")
        for graph_id, _ in graphs(json.loads(path.read_text(encoding="utf-8")))
        if graph_id is not None
    ]
    assert len(ids) == len(set(ids)) > 10
