"""The timeline on Agent Refinement Loop, in the browser, with an agent that answers when the test lets it."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness.agent_loop import Graph, node, previous_prompt, revised, tint
from harness.chat_server import ChatRequest, ChatServer
from harness.waiting import HANG, wait_until

pytest.importorskip("openai")

HOSTILE = 'a house <img src=x onerror="window.hacked = 1"> at dusk'

ROWS = """() => [...document.querySelectorAll(".realisr-timeline li:not(.empty)")].map((row) => ({
    title: row.querySelector("b").textContent,
    prompt: row.querySelector(".prompt")?.textContent.trim(),
    added: [...row.querySelectorAll("ins")].map((part) => part.textContent),
    removed: [...row.querySelectorAll("del")].map((part) => part.textContent),
    why: row.querySelector(".why")?.textContent,
    pictures: row.querySelectorAll("img").length,
}))"""

STATUS = "() => document.querySelector('.realisr-timeline [role=status]').textContent"

LOOP = "window.app.graph.nodes.find(({ comfyClass }) => comfyClass === 'RealISR_AgentRefinementLoop')"


SIZE = f"() => [...{LOOP}.size]"


WIDTHS = itertools.count(96, 8)


class HeldAgent:
    """Writes better prompts, one answer for each time it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Semaphore(0)

    def __call__(self, request: ChatRequest) -> str:
        assert self.let_go.acquire(timeout=HANG)
        previous = previous_prompt(request)
        number = previous.count("sharp") + 1
        return revised(previous.replace("old", "brick") + f", sharp {number}", "a cue", f"edge {number} was soft")


@pytest.fixture
def agent() -> HeldAgent:
    return HeldAgent()


@pytest.fixture
def chat(agent: HeldAgent) -> Iterator[ChatServer]:
    with ChatServer(default=agent) as running:
        yield running
        agent.let_go.release(100)


def of_photo(graph: Graph, prompt: str) -> Graph:
    """The loop on the shipped photo: without a seed, which the frontend would change from run to run, and in a size of
    its own, as the server keeps what it has made before."""
    graph["photo"] = node("RealISR_ExamplePhoto", photo="moose")
    graph["lq"] = node(
        "ImageScale", image=["photo", 0], upscale_method="area", width=next(WIDTHS), height=64, crop="disabled"
    )
    graph["start"]["inputs"]["prompt"] = prompt
    return graph


def open_graph(canvas, graph: Graph) -> None:
    """As a saved workflow, which has an id: one that was laid out from its API form has none before it is saved."""
    canvas.open_api(graph)
    canvas.open(canvas.export_ui())


def shown(canvas, rounds: int) -> list[dict[str, Any]]:
    """The rows, once there are so many."""
    canvas.page.wait_for_function(f"(rounds) => ({ROWS})().length === rounds", arg=rounds, timeout=HANG * 1000)
    return canvas.page.evaluate(ROWS)


def wait_for_status(canvas, text: str) -> None:
    canvas.page.wait_for_function(f"(text) => ({STATUS})().includes(text)", arg=text, timeout=HANG * 1000)


def press(canvas, label: str, row: int | None = None) -> None:
    """By the button itself: on the canvas it may be too small to hit."""
    place = ".realisr-timeline" if row is None else f".realisr-timeline li:nth-child({row})"
    canvas.page.locator(place).get_by_role("button", name=label, include_hidden=True).dispatch_event("click")


def start(canvas) -> None:
    canvas.page.evaluate("async () => { await window.app.queuePrompt(0, 1); }")


def edits(canvas) -> str:
    return canvas.page.evaluate(f"() => {LOOP}.widgets.find(({{ name }}) => name === 'edited_prompts').value")


def in_other_tab(canvas, act: Callable[[], None]) -> None:
    """Acts while an empty workflow is in front."""
    for command, acts in (("Comfy.NewBlankWorkflow", act), ("Workspace.PreviousOpenedWorkflow", lambda: None)):
        canvas.page.evaluate("async (name) => { await window.app.extensionManager.command.execute(name); }", command)
        canvas.page.wait_for_timeout(300)
        acts()


def look_at_the_loop(canvas) -> None:
    canvas.page.evaluate(
        f"""() => {{
            const node = {LOOP}, {{ ds }} = window.app.canvas;
            ds.scale = 1.1;
            ds.offset = [300 - node.pos[0], 120 - node.pos[1]];
            window.app.canvas.setDirty(true, true);
        }}"""
    )


def test_rounds_appear_as_they_finish_and_the_artist_steers(canvas, chat: ChatServer, agent: HeldAgent):
    graph = of_photo(tint(chat.url, 4, drift_limit=5.0), "an old house")
    open_graph(canvas, graph)
    look_at_the_loop(canvas)
    size = canvas.page.evaluate(SIZE)
    start(canvas)
    (first,) = shown(canvas, 1)
    assert (first["title"], first["prompt"], first["why"]) == ("Round 1", "an old house", "The initial prompt")
    wait_for_status(canvas, "Round 2 of 4")

    # Round 2 is there while the agent of round 3 still thinks; the loop ends after that one.
    agent.let_go.release()
    second = shown(canvas, 2)[1]
    assert (second["added"], second["removed"], second["why"]) == (["brick", ", sharp 1"], ["old"], "edge 1 was soft")
    wait_for_status(canvas, "Round 3 of 4")
    wait_until(lambda: len(chat.requests) == 2)
    with canvas.page.expect_response("**/realisr/agent_loop/stop"):
        press(canvas, "Stop after this round")
    agent.let_go.release()
    wait_for_status(canvas, "Stopped after round 3 of 4")
    canvas.wait_until_idle()
    before = shown(canvas, 3)
    assert [row["pictures"] for row in before] == [1, 1, 1]
    assert len(chat.requests) == 2
    agent.let_go.release(100)
    canvas.run()
    assert shown(canvas, 4)[:3] == before
    assert len(chat.requests) == 3

    # From round 2 on with other words, which stay text.
    press(canvas, "Continue from here", row=2)
    field = canvas.page.locator(".realisr-timeline textarea")
    assert field.input_value() == "an brick house, sharp 1"
    assert canvas.page.locator(".realisr-timeline .editing button").last.is_disabled()
    field.fill(HOSTILE)
    press(canvas, "Use for round 3", row=2)
    assert "Round 3 takes your prompt" in canvas.page.locator(".realisr-timeline .next").inner_text()
    canvas.run()
    wait_for_status(canvas, "4 of 4 rounds")
    rows = shown(canvas, 4)
    assert rows[:2] == before[:2]
    assert (rows[2]["why"], rows[3]["why"]) == ("Your prompt", "edge 1 was soft")
    assert "<img src=x" in rows[2]["prompt"]
    assert [row["pictures"] for row in rows] == [1, 1, 1, 1]
    assert previous_prompt(chat.requests[-1]) == HOSTILE
    assert len(chat.requests) == 4

    edited = json.dumps({"3": HOSTILE}, separators=(",", ":"))
    assert edits(canvas) == edited
    canvas.open(canvas.export_ui())
    assert (shown(canvas, 4), edits(canvas)) == (rows, edited)
    canvas.switch_tab_and_back()
    assert (shown(canvas, 4), edits(canvas)) == (rows, edited)
    canvas.undo_a_move()
    assert (shown(canvas, 4), edits(canvas)) == (rows, edited)
    assert canvas.page.evaluate("() => window.hacked") is None
    assert canvas.page.evaluate(SIZE) == size, "rounds must not push the nodes around"

    press(canvas, "Start over")
    assert edits(canvas) == ""
    assert canvas.page.locator(".realisr-timeline .next").count() == 0
    canvas.run()
    assert shown(canvas, 4)[2]["why"] == "edge 2 was soft"


def test_a_loop_in_a_subgraph_that_runs_behind_another_tab(canvas, chat: ChatServer, agent: HeldAgent):
    graph = of_photo(tint(chat.url, 2), "an old barn")
    # A page of its own: subgraphs of an earlier one would be found again.
    canvas.page.reload(wait_until="domcontentloaded")
    canvas.page.wait_for_function("() => window.app?.vueAppReady", timeout=120_000)
    canvas.open_api(graph)
    canvas.page.evaluate(
        """() => {
            const { graph } = window.app.canvas;
            graph.convertToSubgraph(new Set(graph.nodes.filter(({ comfyClass }) => comfyClass.includes("Agent"))));
        }"""
    )
    canvas.open(canvas.export_ui())
    start(canvas)
    wait_until(lambda: len(chat.requests) == 1)

    def finish() -> None:
        agent.let_go.release(100)
        canvas.wait_until_idle()

    in_other_tab(canvas, finish)
    canvas.page.evaluate(
        """() => {
            const outer = window.app.graph.nodes.find(({ subgraph }) => subgraph);
            window.app.canvas.setGraph(outer.subgraph);
        }"""
    )
    assert [row["prompt"] for row in shown(canvas, 2)] == ["an old barn", "an old brick barn, sharp 1"]


def test_a_picture_that_is_gone_leaves_no_broken_one(canvas, chat: ChatServer):
    open_graph(canvas, of_photo(tint(chat.url, 1), "an old mill"))
    canvas.run()
    (row,) = shown(canvas, 1)
    assert row["pictures"] == 1
    saved = canvas.export_ui()
    (loop,) = [node for node in saved["nodes"] if node["type"] == "RealISR_AgentRefinementLoop"]
    loop["properties"]["realisr"]["timeline"]["rows"][0]["picture"]["filename"] = "gone.jpg"
    loop["properties"]["realisr"]["timeline"]["time"] += 1
    canvas.open(saved)
    canvas.page.wait_for_function(f"() => {{ const [row] = ({ROWS})(); return row && row.pictures === 0; }}")
    assert shown(canvas, 1)[0]["prompt"] == row["prompt"]
    assert all("gone.jpg" in error for error in canvas.errors)
    canvas.errors.clear()
