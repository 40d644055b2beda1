"""Quality nodes over the API and in the browser."""

from __future__ import annotations

import json
from typing import Any

import pytest

from comfy_client import PromptError

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


CELLS = "(box) => [...box.querySelectorAll('tr')].map((row) => [...row.children].map((cell) => cell.textContent))"
SIZES = "() => window.app.graph.nodes.map((node) => [...node.size])"


def shown_tables(canvas) -> list[list[list[str]]]:
    """The cells of every score table on the canvas, the longer table first."""
    canvas.page.wait_for_function("() => document.querySelectorAll('.realisr-scores table').length === 2")
    boxes = [box.evaluate(CELLS) for box in canvas.page.query_selector_all(".realisr-scores")]
    return sorted(boxes, key=len, reverse=True)


def test_the_table_is_drawn_on_the_nodes(canvas):
    canvas.open_api(CANDIDATES)
    before = canvas.page.evaluate(SIZES)
    canvas.run()
    ranked, plain = shown_tables(canvas)
    assert ranked[0] == ["index", "piqe ↓", "entropy ↑", "rank sum", "mean"]
    assert plain[0] == ["index", "piqe ↓", "entropy ↑"]
    (chosen,) = [row for row in ranked[1:] if "★" in row[0]]
    assert [cell.split(" ")[0] for cell in chosen[1:3]] == plain[1][1:3]
    assert canvas.page.evaluate(SIZES) == before, "a result must not push the nodes around"


def test_the_table_survives_saving_tabs_undo_and_copies(canvas):
    canvas.open_api(CANDIDATES)
    canvas.run()
    shown = shown_tables(canvas)
    canvas.open(canvas.export_ui())
    assert shown_tables(canvas) == shown
    canvas.switch_tab_and_back()
    assert shown_tables(canvas) == shown
    canvas.undo_a_move()
    assert shown_tables(canvas) == shown
