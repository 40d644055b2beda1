"""What went wrong with a node is told on the node, in both renderers."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from comfy_frontend import Frontend

NANO = "VOSR nano (bundled)"
PIXELS = {"vae_name": "pixel unshuffle x2 (no file)", "decoder_name": "none (the VAE's own)"}

VOSR_INTO_DREAMSR = {
    "1": {"class_type": "RealISRTest_RandomImage", "inputs": {"seed": 3, "width": 64, "height": 48, "batch": 1}},
    "2": {"class_type": "RealISR_LoadVOSRModel", "inputs": {"model_name": NANO}},
    "3": {"class_type": "RealISR_LoadVOSRVAE", "inputs": PIXELS},
    "4": {
        "class_type": "RealISRTest_RandomConditioning",
        "inputs": {"seed": 1, "tokens": 4, "width": 32, "pooled_width": 16},
    },
    "5": {
        "class_type": "RealISR_DreamSRRestore",
        "inputs": {
            "model": ["2", 0],
            "vae": ["3", 0],
            "image": ["1", 0],
            "positive": ["4", 0],
            "lora_name": "none",
            "resize": "scale factor",
            "resize.scale": 2.0,
        },
    },
    "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
}

CARDS = """() => [...document.querySelectorAll('.realisr-error')].filter((card) => !card.hidden).map((card) => ({
    node: card.dataset.node,
    cause: card.querySelector('strong').textContent,
    remedy: card.querySelector('p')?.textContent ?? '',
    buttons: [...card.querySelectorAll('nav button')].map((button) => button.textContent),
}))"""


def cards(canvas: Frontend, number: int) -> list[dict[str, Any]]:
    """The cards on the canvas, once there are so many."""
    canvas.page.wait_for_function(f"() => ({CARDS})().length === {number}")
    return canvas.page.evaluate(CARDS)


TABS = count(1)


def open_graph(canvas: Frontend, graph: dict[str, Any]) -> None:
    """Lay out a graph in a tab of its own, and wait until that is the active one."""
    name = f"failing{next(TABS)}."
    canvas.open_api(graph, name[:-1])
    active = "window.app.extensionManager.workflow.activeWorkflow"
    canvas.page.wait_for_function(f"(name) => {active}?.path.includes(name)", arg=name)


def refused(canvas: Frontend) -> None:
    """Run a workflow that the host refuses; the frontend writes that to the console."""
    canvas.page.evaluate("async () => { await window.app.queuePrompt(0, 1); }")
    unexpected = [error for error in canvas.errors if "/prompt" not in error and "PromptExecutionError" not in error]
    assert unexpected == []
    canvas.errors.clear()


def set_widget(canvas: Frontend, node: str, name: str, value: Any) -> None:
    canvas.page.evaluate(
        """([id, name, value]) => {
            const node = window.app.graph.getNodeById(id);
            const widget = node.widgets.find((each) => each.name === name);
            widget.value = value;
            widget.callback?.(value, window.app.canvas, node);
        }""",
        [node, name, value],
    )


def command(canvas: Frontend, name: str) -> None:
    canvas.page.evaluate("async (name) => { await window.app.extensionManager.command.execute(name); }", name)


def press(canvas: Frontend, label: str) -> None:
    canvas.page.evaluate(
        "(label) => [...document.querySelectorAll('.realisr-error button')]"
        ".find((button) => button.textContent === label).click()",
        label,
    )


BOXES = """(id) => {
    const drawn = document.querySelector(`[data-node-id="${id}"]`)?.getBoundingClientRect();
    const { ds } = window.app.canvas;
    const [x, y, width, height] = window.app.graph.getNodeById(id).boundingRect;
    const frame = window.app.canvas.canvas.getBoundingClientRect();
    const box = drawn ?? { left: frame.left + (x + ds.offset[0]) * ds.scale, width: width * ds.scale };
    const card = document.querySelector('.realisr-error').getBoundingClientRect();
    return [card.left - box.left, card.width - Math.max(box.width, 280 * Math.min(1.5, Math.max(0.75, ds.scale)))];
}"""

SIZES = "() => window.app.graph.nodes.map((node) => [...node.size])"


def test_a_run_that_fails_on_a_wrong_model(canvas):
    """Cause and remedy on the node, the way to the guilty one; over tabs, until what is wrong is changed."""
    open_graph(canvas, VOSR_INTO_DREAMSR)
    sizes = canvas.page.evaluate(SIZES)
    canvas.run()
    (card,) = cards(canvas, 1)
    assert card["node"] == "5"
    assert card["cause"] == f"DreamSR Restore needs FLUX.1-dev, and the VOSR model {NANO} is connected to model."
    assert card["remedy"] == "Connect Load Diffusion Model with flux1-dev.safetensors."
    assert card["buttons"] == ["Go to Load VOSR Model"]
    assert canvas.page.evaluate(SIZES) == sizes, "an error must not push the nodes around"
    press(canvas, "Go to Load VOSR Model")
    assert canvas.page.evaluate("() => Object.keys(window.app.canvas.selected_nodes)") == ["2"]
    canvas.page.evaluate("() => window.app.canvas.centerOnNode(window.app.graph.getNodeById('5'))")
    canvas.page.wait_for_function(f"() => ({BOXES})('5').every((difference) => Math.abs(difference) < 2)")

    # A twin in another tab, with nodes of the same numbers.
    open_graph(canvas, VOSR_INTO_DREAMSR)
    cards(canvas, 0)
    command(canvas, "Workspace.PreviousOpenedWorkflow")
    assert cards(canvas, 1) == [card], "it belongs to its workflow"
    canvas.undo_a_move()
    assert cards(canvas, 1) == [card]

    set_widget(canvas, "2", "weight_dtype", "fp16")
    cards(canvas, 0)
    canvas.run()
    cards(canvas, 1)
    canvas.page.evaluate("() => window.app.graph.remove(window.app.graph.getNodeById('5'))")
    cards(canvas, 0)

    # Run before the frontend has made the tab of what it has laid out.
    canvas.page.evaluate(
        "async ([graph, name]) => { window.app.loadApiJson(graph, name); await window.app.queuePrompt(0, 1); }",
        [VOSR_INTO_DREAMSR, f"failing{next(TABS)}."],
    )
    assert cards(canvas, 1) == [card]


HOSTILE = "<img src=x onerror=\"document.title='taken'\">.safetensors"

LOADERS = {
    "1": {"class_type": "RealISR_LoadVOSRModel", "inputs": {"model_name": "VOSR_0.5B_os"}},
    "2": {"class_type": "RealISR_LoadVOSRVAE", "inputs": {**PIXELS, "decoder_name": HOSTILE}},
    "3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    "4": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
}

REDDENED = """() => Object.fromEntries(Object.entries(window.app.lastNodeErrors ?? {}).map(
    ([id, { errors }]) => [id, errors.map(({ extra_info }) => extra_info.input_name)]))"""


def test_what_is_missing_is_told_before_the_run(bare_models, canvas):
    """Of two loaders: link and folder to copy, and a hostile file name is text. Choosing another file ends it."""
    open_graph(canvas, LOADERS)
    refused(canvas)
    model, vae = sorted(cards(canvas, 2), key=lambda card: card["node"])
    assert model["cause"] == "VOSR_0.5B_os is not in models/diffusion_models."
    assert "https://huggingface.co/CSWRY/VOSR" in model["remedy"]
    assert model["buttons"] == ["Copy link", "Copy folder"]
    assert vae["cause"] == f"{HOSTILE} is not in models/vae."
    assert canvas.page.query_selector(".realisr-error img") is None
    assert canvas.page.title() != "taken"
    assert canvas.page.evaluate(REDDENED) == {"1": ["model_name"], "2": ["decoder_name"]}
    set_widget(canvas, "2", "decoder_name", PIXELS["decoder_name"])
    (left,) = cards(canvas, 1)
    assert left == model
    set_widget(canvas, "1", "model_name", NANO)
    canvas.run()
    cards(canvas, 0)


MARKUP = "ftp://<img/src=x/onerror=document.title='taken'>"

IN_A_SUBGRAPH = {
    "1": {"class_type": "PrimitiveString", "inputs": {"value": MARKUP}},
    "2": {"class_type": "RealISR_ChatEndpoint", "inputs": {"base_url": ["1", 0], "model": "m", "key_variable": ""}},
    "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
}

WRAP = """async () => {
    const { graph } = window.app;
    const { node } = graph.convertToSubgraph(new Set([graph.getNodeById("2")]));
    return String(node.id);
}"""

CARD_AT = """(id) => {
    const card = document.querySelector('.realisr-error').getBoundingClientRect();
    const { ds } = window.app.canvas;
    const frame = window.app.canvas.canvas.getBoundingClientRect();
    return card.left - (frame.left + (window.app.canvas.graph.getNodeById(id).pos[0] + ds.offset[0]) * ds.scale);
}"""


def test_an_error_inside_a_subgraph(canvas):
    """On the subgraph's node, with the way to the node inside; not over App mode; markup in the message is text."""
    open_graph(canvas, IN_A_SUBGRAPH)
    outer = canvas.page.evaluate(WRAP)
    canvas.run()
    (card,) = cards(canvas, 1)
    assert card["node"] == f"{outer}:2"
    assert MARKUP in card["cause"] + card["remedy"]
    assert canvas.page.query_selector(".realisr-error img") is None
    assert canvas.page.title() != "taken"
    assert card["buttons"][0].startswith("Go to ")
    canvas.page.wait_for_function(f"(id) => Math.abs(({CARD_AT})(id)) < 3", arg=outer)

    command(canvas, "Comfy.ToggleLinear")
    canvas.page.wait_for_function("() => !document.querySelector('.realisr-error')?.checkVisibility()")
    command(canvas, "Comfy.ToggleLinear")
    assert cards(canvas, 1) == [card]

    press(canvas, card["buttons"][0])
    canvas.page.wait_for_function("() => window.app.canvas.graph !== window.app.rootGraph")
    (inside,) = cards(canvas, 1)
    assert inside["node"] == card["node"] and inside["cause"] == card["cause"]
    canvas.page.wait_for_function(f"() => Math.abs(({CARD_AT})('2')) < 3")
    canvas.page.evaluate("() => window.app.canvas.setGraph(window.app.rootGraph)")
    canvas.page.wait_for_function(f"() => ({CARDS})()[0]?.buttons.length === {len(card['buttons'])}")
    canvas.undo_a_move()
    assert cards(canvas, 1) == [card]


ENDPOINT = {
    "1": {"class_type": "RealISR_ChatEndpoint", "inputs": {"base_url": "ftp://host", "model": "m", "key_variable": ""}},
    "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
}


@pytest.mark.parametrize(
    ("changes", "guilty"),
    [
        ({}, ["base_url"]),
        ({"model": " "}, ["base_url", "model"]),
        ({"base_url": "https://api.openai.com/v1"}, ["key_variable"]),
    ],
)
def test_a_bad_field_of_the_endpoint_reddens_itself_alone(canvas, changes, guilty):
    inputs = {**ENDPOINT["1"]["inputs"], **changes}
    open_graph(canvas, {**ENDPOINT, "1": {**ENDPOINT["1"], "inputs": inputs}})
    refused(canvas)
    (card,) = cards(canvas, 1)
    assert card["cause"].startswith(guilty[0])
    assert sorted(canvas.page.evaluate(REDDENED)["1"]) == sorted(guilty)
    set_widget(canvas, "1", "base_url", "localhost:11434")
    set_widget(canvas, "1", "model", "llava")
    canvas.run()
    cards(canvas, 0)
