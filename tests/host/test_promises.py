"""Saved workflows are promises: what a released node looked like from outside, every later one still does.

A workflow file stores widgets by their place, links by an input's name and the number of an output. So nothing that
was released may leave or move; new widgets come last, and so do new outputs. `released_nodes.json` is written with
`python dev/host_env.py run -- tests/host/test_promises.py` when a version is released, never to make this test pass.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

RELEASED = Path(__file__).parents[1] / "released_nodes.json"

RENAMED_SOCKETS = {"MM_CONTROLNET": "REALISR_MM_CONTROLNET"}
"""The frontend takes a link's type from the nodes, so that an older file opens with its links (tests/e2e)."""


def described_input(item: Any) -> dict[str, Any]:
    """An input's name and type, and for a widget what a saved value may be."""
    from comfy_api.latest import io

    described: dict[str, Any] = {"name": item.id, "type": item.get_io_type()}
    if isinstance(item, io.DynamicCombo.Input):
        described["options"] = {
            option.key: [described_input(each) for each in option.inputs] for option in item.options
        }
    elif isinstance(item, io.Combo.Input):
        described["options"] = list(item.options or [])
    if getattr(item, "control_after_generate", None):
        described["control"] = True
    if isinstance(item, io.WidgetInput) and not getattr(item, "force_input", None):
        described["widget"] = True
    return described


def described(node: type[Any]) -> dict[str, Any]:
    schema = node.GET_SCHEMA()
    return {
        "inputs": [described_input(item) for item in schema.inputs],
        "outputs": [item.get_io_type() for item in schema.outputs],
    }


def widgets(inputs: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    return [(item["name"], item.get("control", False)) for item in inputs if item.get("widget")]


def broken(name: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What a workflow saved with the released node would lose."""
    problems = []
    if widgets(new["inputs"])[: len(widgets(old["inputs"]))] != widgets(old["inputs"]):
        problems.append(f"{name}: widgets were {widgets(old['inputs'])}, are {widgets(new['inputs'])}")
    outputs = [RENAMED_SOCKETS.get(kind, kind) for kind in old["outputs"]]
    if new["outputs"][: len(outputs)] != outputs:
        problems.append(f"{name}: outputs were {outputs}, are {new['outputs']}")
    by_name = {item["name"]: item for item in new["inputs"]}
    for item in old["inputs"]:
        found = by_name.get(item["name"])
        if found is None:
            problems.append(f"{name}: input {item['name']} is gone")
        elif not accepted(item["type"]) <= accepted(found["type"]):
            problems.append(f"{name}.{item['name']}: took {item['type']}, takes {found['type']}")
        else:
            problems += lost_options(f"{name}.{item['name']}", item.get("options", []), found.get("options", []))
    return problems


def accepted(kind: str) -> set[str]:
    return {RENAMED_SOCKETS.get(each, each) for each in kind.split(",")}


def lost_options(name: str, old: Any, new: Any) -> list[str]:
    problems = [f"{name}: option {option!r} is gone" for option in old if option not in new]
    if isinstance(old, dict):
        # Widgets of an option stand between the node's others, so that their number may not change either.
        problems += [
            f"{name}: option {key!r} had {old[key]}, has {new[key]}"
            for key in old
            if key in new and widgets(old[key]) != widgets(new[key])
        ]
        problems += [
            line
            for key in old
            if key in new
            for line in broken(
                f"{name}.{key}", {"inputs": old[key], "outputs": []}, {"inputs": new[key], "outputs": []}
            )
        ]
    return problems


def test_released_nodes_keep_their_face(host):
    from harness.schemas import pack_nodes

    now = {node.GET_SCHEMA().node_id: described(node) for node in pack_nodes()}
    released = json.loads(RELEASED.read_text(encoding="utf-8"))
    problems = [f"node {name} is gone" for name in released if name not in now]
    problems += [line for name, old in released.items() if name in now for line in broken(name, old, now[name])]
    assert not problems, "\n".join(problems)


SEED = {"name": "seed", "type": "INT", "widget": True, "control": True}
SIZE = {"name": "size", "type": "COMBO", "widget": True, "options": ["small", "large"]}
IMAGE = {"name": "image", "type": "IMAGE"}


def node(*inputs: dict[str, Any], outputs: tuple[str, ...] = ("IMAGE",)) -> dict[str, Any]:
    return {"inputs": list(inputs), "outputs": list(outputs)}


@pytest.mark.parametrize(
    "changed",
    [
        node(SIZE, SEED, IMAGE),
        node(SEED, IMAGE),
        node(SEED, SIZE),
        node({**SEED, "control": False}, SIZE, IMAGE),
        node(SEED, {**SIZE, "options": ["large"]}, IMAGE),
        node(SEED, SIZE, {**IMAGE, "type": "LATENT"}),
        node(SEED, SIZE, IMAGE, outputs=("MASK", "IMAGE")),
    ],
)
def test_a_broken_promise_is_found(changed: dict[str, Any]):
    assert broken("N", node(SEED, SIZE, IMAGE), changed)


def test_what_is_added_at_the_end_breaks_nothing():
    added = node(
        IMAGE,
        SEED,
        {**SIZE, "options": ["small", "large", "huge"]},
        {**SEED, "name": "other"},
        outputs=("IMAGE", "MASK"),
    )
    assert broken("N", node(SEED, SIZE, IMAGE), added) == []


def write_released() -> None:
    """Takes the nodes of this checkout for released."""
    import tempfile

    from _pack import load_pack
    from harness.host import start_host
    from harness.schemas import pack_nodes
    from host_env import make_host

    load_pack()
    with tempfile.TemporaryDirectory() as base:
        start_host(make_host().comfyui, Path(base))
        faces = {node.GET_SCHEMA().node_id: described(node) for node in pack_nodes()}
    RELEASED.write_text(json.dumps(faces, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_released()
