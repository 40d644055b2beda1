"""Lay out workflows/*.json and subgraphs/*.json with ComfyUI's real frontend: `make arrange`.

Every node is drawn by both of the frontend's renderers and gets the room that the larger of the two needs; then
graph_layout.py says where it goes. Run it whenever the height of a node has changed, or after drawing a workflow: put
the nodes into groups, the notes anywhere, and the rest is done here. A second run changes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from comfy_frontend import RENDERERS, Frontend, find_browser
from comfy_server import ComfyServer
from export_workflows import write_json
from graph_layout import GAP, Box, Layout, Rectangle, arrange, fit_zoom
from host_env import make_host
from templates import templates

ROOT = Path(__file__).resolve().parent.parent
SUBGRAPHS = ROOT / "subgraphs"
"""Blueprints: files of one node each, which stands for the subgraph in it."""

TITLE = 30
"""Height of a node's title bar, above its position."""
WIDTH = 260
NOTE_WIDTH = 280
NOTE_COLOURS = {"color": "#432", "bgcolor": "#653"}
NOTES = ("MarkdownNote", "Note")
MARGIN = 0.95
"""Of the window, that is filled when a workflow is opened."""

SIZES = {
    "CLIPTextEncode": (WIDTH, 150),
    "ImageCompare": (360, 400),
    "LoadImage": (WIDTH, 330),
    "MarkdownNote": (NOTE_WIDTH, 60),
    "Note": (NOTE_WIDTH, 60),
    "PreviewAny": (WIDTH, 180),
    "PreviewImage": (360, 300),
    "PrimitiveStringMultiline": (WIDTH, 150),
    "RealISR_CompareSheet": (440, 0),
    "SaveImage": (360, 360),
}
"""Of nodes whose content stretches, without the title bar; every other node is as low as its widgets let it be."""

Graph = dict[str, Any]


def graphs(workflow: Graph) -> Iterator[tuple[str | None, Graph]]:
    """The workflow itself, under None, and its subgraphs under their ids."""
    yield None, workflow
    for subgraph in workflow.get("definitions", {}).get("subgraphs", []):
        yield subgraph["id"], subgraph


def measured(frontend: Frontend, workflow: Graph) -> dict[str | None, dict[int, Box]]:
    """How large each node is drawn at most, and sets its size in `workflow` to the least that was asked for."""
    for _, graph in graphs(workflow):
        for node in graph["nodes"]:
            width, height = SIZES.get(node["type"], (WIDTH, 0))
            node["size"] = [width, height]
    drawn: dict[str | None, dict[int, Box]] = {graph_id: {} for graph_id, _ in graphs(workflow)}
    least: dict[tuple[str | None, int], float] = {}
    for renderer in RENDERERS:
        frontend.use_renderer(renderer)
        opened = frontend.open(workflow)
        if opened.missing_nodes or opened.errors:
            sys.exit(f"missing nodes {opened.missing_nodes}, errors {opened.errors}")
        for graph_id, boxes in drawn.items():
            for node, (_, _, width, height) in frontend.node_boxes(graph_id, moments=6).items():
                known = boxes.get(node, Box(0, 0))
                boxes[node] = Box(max(known.width, width), max(known.height, height))
                least[graph_id, node] = min(least.get((graph_id, node), height), height)
    for graph_id, graph in graphs(workflow):
        for node in graph["nodes"]:
            high = drawn[graph_id][node["id"]].height if node["type"] in SIZES else least[graph_id, node["id"]]
            node["size"][1] = high - TITLE
    return drawn


def links_of(graph: Graph) -> list[tuple[int, int]]:
    """(source, target) of every link between two nodes; those of a subgraph's own inputs and outputs are left out."""
    inside = {node["id"] for node in graph["nodes"]}
    pairs = [
        (link[1], link[3]) if isinstance(link, list) else (link["origin_id"], link["target_id"])
        for link in graph["links"]
    ]
    return [pair for pair in pairs if inside.issuperset(pair)]


def members(graph: Graph, nodes: Sequence[Graph]) -> list[list[int]]:
    """The ids in each group of the graph: nodes whose title bar's middle is inside."""
    grouped: list[list[int]] = []
    taken: set[int] = set()
    for group in graph.get("groups", []):
        x, y, width, height = group["bounding"]
        inside = [
            node["id"]
            for node in nodes
            if x <= node["pos"][0] + node["size"][0] / 2 <= x + width and y <= node["pos"][1] <= y + height
        ]
        grouped.append([node for node in inside if node not in taken])
        taken.update(inside)
    return grouped


def lay_out(graph: Graph, boxes: dict[int, Box], grouped: Sequence[Sequence[int]]) -> None:
    """Set positions and widths of a graph's nodes, groups and notes, and where a subgraph's own slots stand."""
    notes = [node for node in graph["nodes"] if node["type"] in NOTES]
    others = {node["id"]: boxes[node["id"]] for node in graph["nodes"] if node["type"] not in NOTES}
    layout = arrange(others, links_of(graph), grouped, NOTE_WIDTH + GAP if notes else 0)
    for node in graph["nodes"]:
        if node["id"] in layout.nodes:
            at = layout.nodes[node["id"]]
            node["pos"], node["size"][0] = [at.x, at.y + TITLE], at.width
    for group, at in zip(graph.get("groups", []), layout.groups, strict=True):
        group["bounding"] = [at.x, at.y, at.width, at.height]
    top = 0.0
    for note in notes:
        note.update(NOTE_COLOURS)
        note["pos"] = [-NOTE_WIDTH - GAP, top + TITLE]
        note["size"][0] = NOTE_WIDTH
        top += boxes[note["id"]].height + GAP
        layout.nodes[note["id"]] = Rectangle(
            note["pos"][0], note["pos"][1] - TITLE, NOTE_WIDTH, boxes[note["id"]].height
        )
    if "inputNode" in graph:
        place_slots(graph, layout)
    elif len(graph["nodes"]) > 1:  # a blueprint is placed, not opened
        show_all(graph, layout.bounds())


def place_slots(subgraph: Graph, layout: Layout) -> None:
    bounds = layout.bounds()
    for name, x in (("inputNode", bounds.x - 200), ("outputNode", bounds.right + 80)):
        _, _, width, height = subgraph[name]["bounding"]
        subgraph[name]["bounding"] = [x, bounds.y + GAP, width, height]


def show_all(workflow: Graph, bounds: Rectangle) -> None:
    """The view that the file opens with: all of it, in the middle of a window of usual size."""
    scale = round(min(1.0, MARGIN * fit_zoom(bounds.width, bounds.height)), 3)
    middle = [bounds.x + bounds.width / 2, bounds.y + bounds.height / 2]
    offset = [round(half / scale - at, 1) for half, at in zip((800, 500), middle, strict=True)]
    workflow.setdefault("extra", {})["ds"] = {"scale": scale, "offset": offset}


def arrange_workflow(frontend: Frontend, workflow: Graph) -> Graph:
    """The workflow, a UI-form graph, with every position and size set anew."""
    workflow = json.loads(json.dumps(workflow))
    grouped = {
        graph_id: members(graph, [node for node in graph["nodes"] if node["type"] not in NOTES])
        for graph_id, graph in graphs(workflow)
    }
    boxes = measured(frontend, workflow)
    for graph_id, graph in graphs(workflow):
        graph["groups"] = [group for group, ids in zip(graph.get("groups", []), grouped[graph_id], strict=True) if ids]
        lay_out(graph, boxes[graph_id], [ids for ids in grouped[graph_id] if ids])
    return tidy(workflow)


def tidy(value: Any) -> Any:
    """Whole numbers without their ".0", as JavaScript writes them."""
    if isinstance(value, dict):
        return {key: tidy(each) for key, each in value.items()}
    if isinstance(value, list):
        return [tidy(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="all of workflows/ and subgraphs/ if none is named")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when something would change")
    asked = parser.parse_args()
    browser = find_browser()
    if browser is None:
        sys.exit("this needs a browser: no chromium, chromium-browser or google-chrome on PATH")
    changed = []
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(make_host(), Path(base), {"realisr": ROOT}) as server,
        Frontend(server.url, browser) as frontend,
    ):
        for path in asked.files or [each.path for each in templates() if not each.is_app] + sorted(
            SUBGRAPHS.glob("*.json")
        ):
            workflow = json.loads(path.read_text(encoding="utf-8"))
            arranged = arrange_workflow(frontend, workflow)
            if arranged != workflow:
                changed.append(path.name)
                if not asked.check:
                    write_json(path, arranged)
    if asked.check and changed:
        sys.exit(f"`make arrange` would move nodes in {', '.join(changed)}")


if __name__ == "__main__":
    main()
