"""The gallery of NR-IQA Best-of-N Selector: choosing by hand, comparing, sorting, and what of it is kept."""

from __future__ import annotations

from typing import Any

import numpy as np

HOSTILE = "<img src=x onerror=window.realisrHacked=1><b>bold</b>"

COUNT = 4

GRAPH: dict[str, Any] = {
    "1": {"class_type": "RealISRTest_RandomImage", "inputs": {"seed": 7, "width": 96, "height": 64, "batch": COUNT}},
    "2": {"class_type": "RealISRTest_TintByText", "inputs": {"image": ["1", 0], "text": HOSTILE}},
    "3": {
        "class_type": "RealISR_NRIQABestOfN",
        "inputs": {"images": ["2", 0], "metrics": "entropy, piqe", "candidates": "batch items", "image_count": 1}
        | {"pinned": ""},
    },
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    "5": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
}

BEST = "RealISR_NRIQABestOfN"
WIDGET = f"() => window.app.graph.nodes.find((n) => n.type === '{BEST}').widgets.find((w) => w.name === 'pinned').value"
HEIGHTS = """() => [
    ...[...document.querySelectorAll('.realisr-panel')].map((panel) => panel.offsetHeight),
    ...window.app.graph.nodes.filter((node) => node.type.startsWith('RealISR_')).map((node) => node.size[1]),
]"""
SETTLED = f"""() => {{
    const now = JSON.stringify(({HEIGHTS})());
    window.realisrSame = now === window.realisrHeights ? window.realisrSame + 1 : 0;
    window.realisrHeights = now;
    return window.realisrSame > 20;
}}"""
CARDS = """() => [...document.querySelectorAll('[data-candidate]')].map((card) => ({
    candidate: card.dataset.candidate, star: Boolean(card.querySelector('.star')),
    pinned: card.getAttribute('aria-pressed') === 'true', picture: Boolean(card.querySelector('img')),
}))"""


def cards(canvas) -> list[dict[str, Any]]:
    canvas.page.wait_for_function(f"() => document.querySelectorAll('[data-candidate]').length === {COUNT}")
    return canvas.page.evaluate(CARDS)


def numbers(canvas, mark: str) -> list[int]:
    return [index for index, card in enumerate(cards(canvas)) if card[mark]]


def latest(canvas, server) -> dict[str, Any]:
    """What the nodes of the last run showed."""
    history = server.client.get("/history")
    return list(history.values())[-1]["outputs"]


RUN = """async () => {
    const { api } = window.app;
    let scores = 0;
    const hear = ({ detail: { node, max } }) => {
        if (window.app.rootGraph.getNodeById(node)?.type === "RealISR_NRIQABestOfN") scores = max;
    };
    api.addEventListener("progress", hear);
    const done = new Promise((resolve) => api.addEventListener("execution_success", resolve, { once: true }));
    await window.app.queuePrompt(0, 1);
    await done;
    api.removeEventListener("progress", hear);
    return scores;
}"""


def run(canvas) -> int:
    """Run the open workflow to its end; how many scores were computed for it, as the node's bar counts them."""
    return canvas.page.evaluate(RUN)


def rows_of(outputs: dict[str, Any]) -> list[dict[str, Any]]:
    return outputs["3"]["score_table"][0]["sections"][0]["rows"]


def picture(server, file: dict[str, str]) -> np.ndarray:
    return np.asarray(server.client.image(file).convert("RGB"))


def test_a_candidate_is_chosen_by_hand_and_stays_chosen(canvas, server, request):
    """A story: run, look, take another one, run again; then everything that a canvas goes through."""
    page = canvas.page
    # Another seed for each renderer: the server keeps the scores of pictures that it has seen.
    seed = 7 + ["classic", "nodes2"].index(request.node.callspec.params["canvas"])
    canvas.open_api({**GRAPH, "1": {**GRAPH["1"], "inputs": {**GRAPH["1"]["inputs"], "seed": seed}}})
    page.evaluate("""() => {
        const widgets = window.app.graph.nodes.flatMap((node) => node.widgets ?? []);
        for (const widget of widgets) if (widget.name === "control_after_generate") widget.value = "fixed";
    }""")
    page.wait_for_selector(".realisr-gallery >> text=Run the workflow")
    # Nodes 2.0 measures a node some frames after it is drawn.
    page.wait_for_function(SETTLED)
    heights = page.evaluate(HEIGHTS)
    assert run(canvas) == 2 * COUNT
    first = latest(canvas, server)
    (best,) = [row["index"] for row in rows_of(first) if row["best"]]
    assert numbers(canvas, "star") == [best] and numbers(canvas, "pinned") == []
    page.wait_for_function(
        f"() => [...document.querySelectorAll('[data-candidate] img')].filter((i) => i.naturalWidth).length === {COUNT}"
    )

    other = (best + 1) % COUNT
    page.click(f"[data-candidate='0:{other}']")
    assert page.evaluate(WIDGET) == str(other)
    assert "Nothing is scored again" in page.inner_text(".realisr-gallery .bar")
    assert run(canvas) == 0, "a choice by hand must not compute a score"
    second = latest(canvas, server)
    (given,), every = second["4"]["images"], (first | second)["5"]["images"]
    assert np.array_equal(picture(server, given), picture(server, every[other]))
    assert [row["scores"] for row in rows_of(second)] == [row["scores"] for row in rows_of(first)]
    assert numbers(canvas, "star") == [best] and numbers(canvas, "pinned") == [other]
    assert "handed on" in page.inner_text(".realisr-gallery .bar")
    assert page.evaluate(HEIGHTS) == heights, "results must not push the nodes around"

    shown = cards(canvas)
    canvas.open(canvas.export_ui())
    assert cards(canvas) == shown and page.evaluate(WIDGET) == str(other)
    canvas.switch_tab_and_back()
    assert cards(canvas) == shown and page.evaluate(WIDGET) == str(other)
    canvas.undo_a_move()
    assert cards(canvas) == shown and page.evaluate(WIDGET) == str(other)
    # And the cards are those of the node that is there now.
    page.click(".realisr-gallery >> text=Let the scores choose")
    assert page.evaluate(WIDGET) == "" and numbers(canvas, "pinned") == []
    page.click(f"[data-candidate='0:{other}']")
    page.keyboard.press("Enter")
    assert page.evaluate(WIDGET) == "", "a second press takes the pin off"


def test_candidates_are_compared_and_sorted(canvas, server):
    page = canvas.page
    canvas.open_api(GRAPH)
    run(canvas)
    cards(canvas)
    page.click("[data-candidate='0:0']", modifiers=["Shift"])
    page.click("[data-candidate='0:2']", modifiers=["Shift"])
    page.wait_for_function(
        "() => [...document.querySelectorAll('.realisr-slider img')].filter((i) => i.naturalWidth === 96).length === 2"
    )
    assert page.evaluate(WIDGET) == "", "looking is not choosing"
    box = page.locator(".realisr-slider input").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    place = "() => parseFloat(document.querySelector('.realisr-slider i').style.left)"
    at = page.evaluate(place)
    assert 20 < at < 30
    page.keyboard.press("ArrowRight")
    assert page.evaluate(place) == at + 0.5
    page.click(".realisr-gallery >> text=Take 2")
    assert page.evaluate(WIDGET) == "2" and page.evaluate(place) == at + 0.5
    page.click(".realisr-gallery >> text=Back")
    assert numbers(canvas, "pinned") == [2]

    page.click(".realisr-gallery >> text=Table")
    rows = "[...document.querySelectorAll('.realisr-gallery tr')].slice(1)"
    column = f"(n) => {rows}.map((row) => row.children[n].textContent)"
    entropies = [float(cell.split(" ")[0]) for cell in page.evaluate(column, 1)]
    page.click(".realisr-gallery th >> text=entropy")
    assert [float(cell.split(" ")[0]) for cell in page.evaluate(column, 1)] == sorted(entropies, reverse=True)
    page.click(".realisr-gallery th >> text=rank sum")
    assert page.evaluate(column, 3) == sorted(page.evaluate(column, 3), key=int)


def test_prompts_are_text_and_lost_pictures_leave_the_numbers(canvas, server):
    """The table of a saved file is drawn as it is: a language model wrote its prompts, its pictures are long gone."""
    page = canvas.page
    canvas.open_api(GRAPH)
    saved = canvas.export_ui()
    (node,) = [node for node in saved["nodes"] if node["type"] == BEST]
    gone = {size: {"filename": f"{HOSTILE}.jpg", "subfolder": "realisr", "type": "temp"} for size in ("small", "large")}
    rows = [
        {
            "index": index,
            "scores": [None],
            "ranks": [1],
            "rank_sum": 1,
            "mean": 0.0,
            "best": index == 1,
            "chosen": index == 1,
        }
        | {"prompt": HOSTILE, "content": HOSTILE, "pictures": gone}
        for index in range(COUNT)
    ]
    table = {"metrics": [{"name": HOSTILE, "lower_is_better": False}], "sections": [{"title": HOSTILE, "rows": rows}]}
    node["properties"]["realisr"] = {"score_table": [table]}
    canvas.open(saved)
    shown = cards(canvas)
    assert [card["star"] for card in shown] == [False, True, False, False]
    page.wait_for_function("() => !document.querySelector('[data-candidate] img')")
    assert page.get_attribute("[data-candidate='0:0']", "title") == HOSTILE
    page.click("[data-candidate='0:0']", modifiers=["Shift"])
    page.click("[data-candidate='0:2']", modifiers=["Shift"])
    page.wait_for_selector(".realisr-gallery >> text=The pictures are gone")
    page.click(".realisr-gallery >> text=Back")
    page.click(".realisr-gallery >> text=Table")
    assert HOSTILE in page.inner_text(".realisr-gallery caption")
    assert page.evaluate("() => window.realisrHacked") is None
    canvas.errors[:] = [error for error in canvas.errors if "/view?" not in error]


def test_an_older_file_opens_with_nothing_pinned(canvas):
    """It has what the table's panel said in the place of `pinned`, or nothing."""
    canvas.open_api(GRAPH)
    saved = canvas.export_ui()
    (node,) = [node for node in saved["nodes"] if node["type"] == BEST]
    for values in (["piqe", "auto", 1], ["piqe", "auto", 1, 0, ""], ["piqe", "auto", 1, 0, None]):
        node["widgets_values"] = values
        canvas.open(saved)
        (inputs,) = [each["inputs"] for each in canvas.export_api().values() if each["class_type"] == BEST]
        assert inputs["pinned"] == "" and inputs["metrics"] == "piqe"
