"""Quality nodes over the API and in the browser."""

from __future__ import annotations

import json
from typing import Any

import pytest

from comfy_client import PromptError
from realisr.services.iqa.weights import WEIGHT_URLS

CANDIDATES = {
    "1": {"class_type": "RealISRTest_RandomImage", "inputs": {"seed": 3, "width": 64, "height": 64, "batch": 4}},
    "2": {
        "class_type": "RealISR_NRIQABestOfN",
        "inputs": {"images": ["1", 0], "metrics": "piqe, entropy", "candidates": "auto", "image_count": 1},
    },
    "3": {"class_type": "RealISR_NRIQAScore", "inputs": {"images": ["2", 0], "metrics": "piqe, entropy"}},
    "4": {"class_type": "PreviewAny", "inputs": {"source": ["2", 3]}},
}


def table_of(outputs: dict[str, Any], node: str) -> dict[str, Any]:
    (table,) = outputs[node]["score_table"]
    return table


def test_the_score_table_is_in_the_history(server):
    result = server.client.run(CANDIDATES)
    history = json.loads(json.dumps(server.client.history(result.prompt_id), allow_nan=False))
    table = table_of(history["outputs"], "2")
    assert [metric["name"] for metric in table["metrics"]] == ["piqe", "entropy"]
    (section,) = table["sections"]
    (chosen,) = [row for row in section["rows"] if row["chosen"]]
    assert chosen["rank_sum"] == min(row["rank_sum"] for row in section["rows"])
    scored = table_of(history["outputs"], "3")["sections"][0]["rows"]
    assert [row["scores"] for row in scored] == [chosen["scores"]]
    (text,) = history["outputs"]["4"]["text"]
    assert f"{chosen['index']} *" in text
    assert result.progress("2")[-1] == (8, 8)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [("pique", "Did you mean piqe"), ("clipiqa", r"RN50\.pt from https://"), ("ssim", "reference")],
)
def test_a_list_of_metrics_that_cannot_work_is_refused_before_the_run(server, metrics: str, message: str):
    score = {"class_type": "RealISR_NRIQAScore", "inputs": {"images": ["1", 0], "metrics": metrics}}
    with pytest.raises(PromptError, match=message) as caught:
        server.client.run({"1": CANDIDATES["1"], "3": score})
    assert caught.value.exception_type == "ValidationError"


def test_metrics_are_listed_with_what_is_missing(server):
    answer = server.client.get("/realisr/metrics")
    offers = {offer["name"]: offer for offer in answer["metrics"]}
    assert answer["folder"].replace("\\", "/").endswith("models/classifiers/pyiqa")
    assert answer["first_choice"] == "piqe" and offers["piqe"]["ready"] and offers["psnr"]["needs_reference"]
    (file,) = offers["clipiqa"]["files"]
    assert file["name"] == "RN50.pt" and file["url"].endswith("/RN50.pt") and not file["found"]
    assert not offers["clipiqa"]["ready"] and offers["clipiqa"]["runs"] and answer["missing_packages"] == []


# --- tables ----------------------------------------------------------------------------------------------------------

EVALUATE = {
    "1": {"class_type": "RealISRTest_RandomImage", "inputs": {"seed": 3, "width": 64, "height": 64, "batch": 4}},
    "2": {"class_type": "RealISRTest_RandomImage", "inputs": {"seed": 4, "width": 64, "height": 64, "batch": 1}},
    "3": {
        "class_type": "RealISR_EvaluateAgainstReference",
        "inputs": {"images": ["1", 0], "reference": ["2", 0], "metrics": "psnr, ssim"},
    },
    "4": {"class_type": "RealISR_NRIQAScore", "inputs": {"images": ["2", 0], "metrics": "entropy"}},
}

CELLS = "(box) => [...box.querySelectorAll('tr')].map((row) => [...row.children].map((cell) => cell.textContent))"
SIZES = "() => window.app.graph.nodes.map((node) => [...node.size])"


def shown_tables(canvas) -> list[list[list[str]]]:
    """The cells of every score table on the canvas, the longer table first."""
    canvas.page.wait_for_function("() => document.querySelectorAll('.realisr-scores table').length === 2")
    boxes = [box.evaluate(CELLS) for box in canvas.page.query_selector_all(".realisr-scores")]
    return sorted(boxes, key=len, reverse=True)


def test_tables_are_drawn_sorted_and_kept(canvas):
    canvas.open_api(EVALUATE)
    before = canvas.page.evaluate(SIZES)
    canvas.run()
    measured, plain = shown_tables(canvas)
    assert measured[0] == ["index", "psnr ↑", "ssim ↑"] and plain[0] == ["index", "entropy ↑"]
    assert [row[0] for row in measured[1:]] == ["0", "1", "2", "3"]
    assert canvas.page.evaluate(SIZES) == before, "a result must not push the nodes around"

    by_psnr = sorted(measured[1:], key=lambda row: float(row[1]))
    canvas.page.click("th >> text=psnr")
    assert shown_tables(canvas)[0] == [measured[0], *reversed(by_psnr)], "the best first"
    canvas.page.keyboard.press("Enter")
    assert shown_tables(canvas)[0] == [measured[0], *by_psnr], "then the worst, by the keyboard too"
    assert canvas.page.get_attribute("th[aria-sort]:has-text('psnr')", "aria-sort") == "ascending"

    canvas.open(canvas.export_ui())
    assert shown_tables(canvas) == [measured, plain]
    canvas.switch_tab_and_back()
    assert shown_tables(canvas) == [measured, plain]
    canvas.undo_a_move()
    assert shown_tables(canvas) == [measured, plain]


# --- the choice of metrics -------------------------------------------------------------------------------------------

PRESSED = (
    """() => [...document.querySelectorAll('[data-metric][aria-pressed=true]')].map((chip) => chip.dataset.metric)"""
)
METRICS = "() => window.app.graph.nodes.find((node) => node.type === 'RealISR_NRIQAScore').widgets[0].value"


def test_metrics_are_chosen_by_buttons_that_write_the_text(canvas):
    page = canvas.page
    canvas.open_api({"1": {"class_type": "RealISR_NRIQAScore", "inputs": {"metrics": "piqe, unique"}}})
    page.wait_for_selector("[data-metric=entropy]")
    assert page.evaluate(PRESSED) == ["piqe", "unique"], "one that is not offered is there because it is in the text"
    page.click("[data-metric=entropy]")
    page.click("[data-metric=unique]")
    assert page.evaluate(METRICS) == "piqe, entropy"

    page.click("[data-metric=liqe]")
    link = page.wait_for_selector(".realisr-metrics a")
    assert link.inner_text() == "liqe_koniq.pt"
    assert link.get_attribute("href") == WEIGHT_URLS["liqe"][0] and link.get_attribute("target") == "_blank"
    assert page.evaluate(METRICS) == "piqe, entropy", "what would fail is not chosen by looking at it"
    page.click(".realisr-metrics >> text=Use it all the same")
    assert page.evaluate(METRICS) == "piqe, entropy, liqe"

    canvas.open(canvas.export_ui())
    page.wait_for_selector("[data-metric=liqe][aria-pressed=true]")
    canvas.undo_a_move()
    page.click("[data-metric=entropy]")
    assert page.evaluate(METRICS) == "piqe, liqe", "after an undo the buttons belong to the node that is there"


def test_a_new_node_begins_with_what_works_here_and_a_saved_one_does_not(canvas):
    page = canvas.page
    paper = "liqe, musiq, maniqa, clipiqa"
    canvas.open_api({"1": {"class_type": "RealISR_NRIQAScore", "inputs": {"metrics": paper}}})
    page.wait_for_selector("[data-metric=liqe][aria-pressed=true]")
    assert page.evaluate(METRICS) == paper
    canvas.open(canvas.export_ui())
    page.wait_for_selector("[data-metric=liqe][aria-pressed=true]")
    assert page.evaluate(METRICS) == paper
    canvas.open_api({})
    page.evaluate("() => window.app.graph.add(LiteGraph.createNode('RealISR_NRIQAScore'))")
    page.wait_for_selector("[data-metric=piqe][aria-pressed=true]")
    assert page.evaluate(METRICS) == "piqe"
