"""The shipped workflows as they are drawn by both renderers: nothing covers anything, and data flows to the right."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from arrange_workflows import NOTE_WIDTH, NOTES, SUBGRAPHS, graphs, links_of, members
from comfy_frontend import RENDERERS, Frontend
from graph_layout import Box, Rectangle, around, arrange, backward, fit_zoom, layers
from templates import templates

WORKFLOWS = [each.path for each in templates() if not each.is_app]

MOST_BACKWARD = 0.1
LEAST_ZOOM = 0.6
MOST_WORDS = 60


def overlap(first: Rectangle, second: Rectangle) -> bool:
    across = min(first.right, second.right) - max(first.x, second.x)
    down = min(first.bottom, second.bottom) - max(first.y, second.y)
    return across > 1 and down > 1


def inside(inner: Rectangle, outer: Rectangle) -> bool:
    return (
        inner.x >= outer.x - 1
        and inner.y >= outer.y - 1
        and inner.right <= outer.right + 1
        and inner.bottom <= outer.bottom + 1
    )


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("path", [*WORKFLOWS, *sorted(SUBGRAPHS.glob("*.json"))], ids=lambda path: path.stem)
def test_nothing_covers_anything_and_data_flows_to_the_right(frontend: Frontend, path: Path, renderer: str):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    frontend.use_renderer(renderer)
    assert not frontend.open(workflow).errors
    problems = []
    for graph_id, graph in graphs(workflow):
        boxes = {node: Rectangle(*box) for node, box in frontend.node_boxes(graph_id).items()}
        assert len(boxes) == len(graph["nodes"])
        problems += [f"{a} and {b} overlap" for a, b in combinations(boxes, 2) if overlap(boxes[a], boxes[b])]
        rectangles = [Rectangle(*group["bounding"]) for group in graph.get("groups", [])]
        grouped = members(graph, graph["nodes"])
        problems += [
            f"{node} spills out of {group['title']}"
            for group, rectangle, ids in zip(graph.get("groups", []), rectangles, grouped, strict=True)
            for node in ids
            if not inside(boxes[node], rectangle)
        ]
        problems += [
            f"{group['title']} covers {node}"
            for group, rectangle, ids in zip(graph.get("groups", []), rectangles, grouped, strict=True)
            for node in boxes
            if node not in ids and overlap(boxes[node], rectangle)
        ]
        links = links_of(graph)
        share = backward(boxes, links) / max(1, len(links))
        if share >= MOST_BACKWARD:
            problems.append(f"{share:.0%} of the links lead back")
        whole = around([*boxes.values(), *rectangles])
        if fit_zoom(whole.width, whole.height) < LEAST_ZOOM:
            problems.append(f"{whole.width:.0f} x {whole.height:.0f} fits at {fit_zoom(whole.width, whole.height):.2f}")
    assert not problems, f"run `make arrange`: {problems}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_notes_look_alike(path: Path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    notes = [node for node in workflow["nodes"] if node["type"] in NOTES]
    assert notes
    others = [node["pos"][0] for node in workflow["nodes"] if node["type"] not in NOTES]
    for note in notes:
        assert (note["type"], note["size"][0], note["color"], note["bgcolor"]) == (
            "MarkdownNote",
            NOTE_WIDTH,
            "#432",
            "#653",
        )
        assert len(note["widgets_values"][0].split()) <= MOST_WORDS
        assert note["pos"][0] + note["size"][0] <= min(others)


def test_a_chain_runs_to_the_right_and_its_parameters_stand_beside_their_reader():
    assert layers([1, 2, 3, 4], [(1, 2), (2, 3), (4, 3)]) == [[1], [2, 4], [3]]


def test_groups_that_wait_for_the_same_stand_below_one_another():
    boxes = {node: Box(200, 100) for node in range(4)}
    layout = arrange(boxes, [(0, 2), (1, 2), (2, 3)], [[0], [1], [2, 3]])
    assert layout.nodes[0].x == layout.nodes[1].x < layout.nodes[2].x < layout.nodes[3].x
    assert layout.groups[0].bottom < layout.groups[1].y
    assert all(inside(layout.nodes[node], layout.groups[2]) for node in (2, 3))


def test_a_long_chain_is_folded_so_that_it_can_be_read():
    boxes = {node: Box(260, 200) for node in range(12)}
    chain = [(node, node + 1) for node in range(11)]
    layout = arrange(boxes, chain, [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]])
    bounds = layout.bounds()
    assert fit_zoom(bounds.width, bounds.height) >= LEAST_ZOOM
    assert backward(layout.nodes, chain) == 1


def test_a_cycle_ends():
    assert {node for column in layers([1, 2], [(1, 2), (2, 1)]) for node in column} == {1, 2}
