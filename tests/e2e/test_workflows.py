"""The shipped workflows in the real frontend: each opens without complaint and is its API twin."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import pytest
from PIL import Image

from _pack import ROOT
from export_workflows import plain_ids
from make_apps import APPS
from templates import Template, read, template, templates

WORKFLOWS = ROOT / "workflows"
TEMPLATES = templates()
NAMES = [each.name for each in TEMPLATES]

RANDOM_IMAGE = {
    "4": {"class_type": "RealISRTest_RandomImage", "inputs": {"seed": 3, "width": 32, "height": 24, "batch": 2}},
    "9": {"class_type": "ImageInvert", "inputs": {"image": ["4", 0]}},
    "12": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "inverted"}},
}


def graph(api: dict[str, Any]) -> dict[str, Any]:
    """What ComfyUI runs of a workflow in API form: without the titles."""
    return {node_id: {"class_type": node["class_type"], "inputs": node["inputs"]} for node_id, node in api.items()}


def test_every_workflow_has_its_twin():
    assert NAMES
    assert len(set(NAMES)) == len(NAMES)
    assert sorted(NAMES) == sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json")), "run `make workflows`"


def test_the_gallery_shows_titles_in_one_order_with_pictures():
    """ComfyUI shows file names; sorted by them, what runs at once comes first and training last."""
    numbers = [int(re.match(r"(\d\d) [A-Z]", each.title)[1]) for each in TEMPLATES]
    assert numbers == sorted(set(numbers))
    assert [each.need for each in TEMPLATES][:5] == ["ready"] * 5
    for each in TEMPLATES:
        assert not re.search(r'[<>:"/\\|?*_]', each.title), "a file name that Windows refuses, or no title"
        with Image.open(each.path.with_suffix(".jpg")) as picture:
            assert picture.size == (512, 512)


@pytest.mark.parametrize(
    ("name", "stamp"),
    [
        ("vosr_nano_quickstart", "Ready"),
        ("compare_methods", "Ready"),
        ("vosr_one_step", "Download 2.7 GB"),
        ("pure_512", "Download 14.4 GB"),
        ("agent_one_round", "Needs a chat model"),
        ("vicr_basic", "No public weights"),
        ("dreamsr_restore", "No public weights"),
    ],
)
def test_stamps_say_what_is_needed(name: str, stamp: str):
    assert template(name).stamp == stamp


def test_every_workflow_has_an_id_of_its_own():
    # Two tabs of one id are one to the frontend: it shows the other's graph.
    ids = [str(uuid.UUID(json.loads(each.path.read_text(encoding="utf-8"))["id"])) for each in TEMPLATES]
    assert len({*ids, str(uuid.UUID(int=0))}) == len(TEMPLATES) + 1


@pytest.mark.parametrize("each", [each for each in TEMPLATES if each.is_app], ids=lambda each: each.name)
def test_an_app_is_a_workflow_with_its_controls(each: Template):
    """The graph of another template, and the widgets that the app shows are there."""
    app = read(each.path)
    assert app["extra"]["linearMode"] is True
    base = read(template(APPS[each.name].of).path)
    assert [app[key] for key in ("nodes", "links", "groups")] == [base[key] for key in ("nodes", "links", "groups")]
    nodes = read(each.twin)
    data = app["extra"]["linearData"]
    assert data["inputs"] and data["outputs"]
    for node, widget in data["inputs"]:
        assert widget in nodes[node]["inputs"]
    assert [nodes[node]["class_type"] for node in data["outputs"]] == ["SaveImage"]


def test_every_node_a_user_places_is_in_a_workflow(host):
    """The agent loop's internal nodes are made by its expansion; ComfyUI hides them."""
    from harness.schemas import pack_nodes

    placed = {schema.node_id for schema in (node.GET_SCHEMA() for node in pack_nodes()) if not schema.is_dev_only}
    graphs = [read(each.twin) for each in TEMPLATES]
    shown = {node["class_type"] for nodes in graphs for node in nodes.values()}
    assert placed - shown == set()
    assert len(placed) > 30


@pytest.mark.parametrize("name", NAMES)
def test_opens_cleanly_and_equals_its_twin(frontend, name: str):
    each = template(name)
    opened = frontend.open_file(each.path)
    assert opened.missing_nodes == []
    assert opened.errors == []
    assert graph(plain_ids(frontend.export_api())) == graph(read(each.twin)), "run `make workflows`"


def test_a_workflow_saved_before_the_sockets_got_their_prefix_keeps_its_links(frontend):
    """MM_CONTROLNET is what REALISR_MM_CONTROLNET was called; saved links and sockets still say so."""
    text = template("dreamsr_4k").path.read_text(encoding="utf-8")
    saved = json.loads(text.replace('"REALISR_MM_CONTROLNET"', '"MM_CONTROLNET"'))
    old_links = [link for link in saved["links"] if link[5] == "MM_CONTROLNET"]
    assert len(old_links) == 1
    (subgraph,) = [each for each in saved["definitions"]["subgraphs"] if each["name"] == "DreamSR two-stage"]
    assert sum(link["type"] == "MM_CONTROLNET" for link in subgraph["links"]) == 2
    opened = frontend.open(saved)
    assert (opened.missing_nodes, opened.errors) == ([], [])
    assert graph(plain_ids(frontend.export_api())) == graph(read(template("dreamsr_4k").twin))
    # And as the frontend saves it now.
    frontend.open(frontend.export_ui())
    assert graph(plain_ids(frontend.export_api())) == graph(read(template("dreamsr_4k").twin))


def test_nodes_of_subgraphs_keep_their_ids_in_the_api_form():
    inside = {"class_type": "B", "inputs": {"image": ["1", 0], "text": "7:12"}}
    outside = {"class_type": "C", "inputs": {"images": ["7:12", 1], "pair": ["other", 3]}}
    api = {"9": outside, "1": {"class_type": "A", "inputs": {}}, "7:12": inside}
    plain = plain_ids(api)
    assert list(plain) == ["1", "9", "12"]
    assert plain["12"] == inside
    assert plain["9"]["inputs"] == {"images": ["12", 1], "pair": ["other", 3]}
    with pytest.raises(ValueError, match="same id"):
        plain_ids({"7:12": inside, "12": outside})


def test_the_export_is_what_was_opened(frontend, server):
    frontend.open_api(RANDOM_IMAGE)
    drawn = frontend.export_ui()
    opened = frontend.open(drawn)
    assert (opened.missing_nodes, opened.errors) == ([], [])
    exported = frontend.export_api()
    assert graph(exported) == graph(RANDOM_IMAGE)
    assert len(server.client.run(exported).images("12")) == 2


def test_a_changed_widget_changes_the_export(frontend):
    frontend.open_api(RANDOM_IMAGE)
    drawn = frontend.export_ui()
    (node,) = [node for node in drawn["nodes"] if node["type"] == "SaveImage"]
    node["widgets_values"] = ["other"]
    frontend.open(drawn)
    assert frontend.export_api()["12"]["inputs"]["filename_prefix"] == "other"


def test_missing_nodes_are_reported(frontend):
    frontend.open_api(RANDOM_IMAGE)
    drawn = frontend.export_ui()
    drawn["nodes"][0]["type"] = "NoSuchNode"
    assert frontend.open(drawn).missing_nodes == ["NoSuchNode"]


def test_errors_of_the_page_are_reported(frontend):
    frontend.open_api(RANDOM_IMAGE)
    with frontend.page.expect_event("pageerror"):
        frontend.page.evaluate("() => { setTimeout(() => { throw new Error('boom'); }, 0); }")
    assert any("boom" in error for error in frontend.errors)
