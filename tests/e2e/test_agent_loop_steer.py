"""What the artist does to a loop while it runs and after: end it early, write a round's prompt; and what it tells."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError

import pytest

from comfy_server import ComfyServer, PromptError
from harness.agent_loop import Graph, candidates, difference, executed, node, numbered, previous_prompt, prompts, tint
from harness.chat_server import ChatServer

pytest.importorskip("openai")

ROUND_BEGINS = ("loop.agent_2", "loop.agent_3")


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with ChatServer(default=numbered) as running:
        yield running


def steered(chat: ChatServer, rounds: int, prompt: str, **options: Any) -> Graph:
    """A loop with a preview in its rounds, and a prompt that no other test has left results of."""
    graph = tint(chat.url, rounds, {"beside": node("PreviewImage", images=["restored", 0])}, **options)
    graph["start"]["inputs"]["prompt"] = prompt
    return graph


def stop_during(server: ComfyServer, running: str):
    """Presses the button when a node starts to run."""

    def press(kind: str, data: dict[str, Any]) -> None:
        if kind == "executing" and data["node"] == running:
            assert server.client.post("/realisr/agent_loop/stop", {"node": "loop"}) == {"stopping": "loop"}

    return press


def told(result) -> list[dict[str, Any]]:
    return [data for kind, data in result.messages if kind == "realisr.timeline"]


def test_a_loop_that_is_stopped_gives_the_rounds_so_far_and_the_next_run_goes_on(server: ComfyServer, chat: ChatServer):
    graph = steered(chat, 5, "stopped")
    stopped = server.client.run(graph, on_message=stop_during(server, "loop.agent_3"))
    assert prompts(stopped) == ["stopped", "stopped, cue 1", "stopped, cue 1, cue 2"]
    assert len(candidates(server.client, stopped)) == 3
    assert stopped.outputs["report"]["text"][0].count("Round ") == 3
    assert len(chat.requests) == 2
    shown = [data["node"] for kind, data in stopped.messages if kind == "executed" and data["display_node"] == "beside"]
    assert shown == ["beside", "loop.round_2.beside", "loop.round_3.beside"]
    assert told(stopped)[-1]["state"] == "stopped"

    # Stopped again where the rounds before are kept, then to the end: nothing is asked twice.
    again = server.client.run(graph, on_message=stop_during(server, "loop.agent_4"))
    assert len(prompts(again)) == 4
    rest = server.client.run(graph)
    assert prompts(rest) == [*prompts(again), "stopped, cue 1, cue 2, cue 3, cue 4"]
    assert len(chat.requests) == 4
    assert "loop.round_4.restored" not in executed(rest)
    pairs = zip(candidates(server.client, stopped), candidates(server.client, rest), strict=False)
    assert [difference(a, b) for a, b in pairs] == [0, 0, 0]
    # And the request is forgotten: the same graph is found as it is.
    assert "loop" not in executed(server.client.run(graph))


def test_stopping_in_round_1_leaves_that_one(server: ComfyServer, chat: ChatServer):
    """Round 1 lasts long enough for the press to come in before it ends."""
    graph = steered(chat, 3, "at once")
    graph |= {"long": node("RealISRTest_Wait", image=["restored", 0], seconds=3.0)}
    graph["loop"]["inputs"]["image"] = ["long", 0]
    stopped = server.client.run(graph, on_message=stop_during(server, "restored"))
    assert prompts(stopped) == ["at once"]
    assert chat.requests == []
    assert len(prompts(server.client.run(graph))) == 3


def test_only_a_loop_that_runs_can_be_stopped(server: ComfyServer, chat: ChatServer):
    def refused(body: Any) -> None:
        with pytest.raises(HTTPError) as caught:
            server.client.post("/realisr/agent_loop/stop", body)
        assert json.load(caught.value) == {"error": "This loop does not run now."}

    def press(kind: str, data: dict[str, Any]) -> None:
        if kind == "executing" and data["node"] == "loop.agent_2":
            for body in ({"node": "restored"}, {"node": ["loop"]}, ["loop"]):
                refused(body)

    refused({"node": "loop"})

    assert len(prompts(server.client.run(steered(chat, 3, "not stopped"), on_message=press))) == 3


def test_an_edited_prompt_keeps_the_rounds_before_it(server: ComfyServer, chat: ChatServer):
    graph = steered(chat, 4, "edited")
    before = server.client.run(graph)
    assert len(chat.requests) == 3
    graph["loop"]["inputs"]["edited_prompts"] = '{"3": "edited, my words"}'
    after = server.client.run(graph)
    assert prompts(after) == ["edited", "edited, cue 1", "edited, my words", "edited, my words, cue 1"]
    assert previous_prompt(chat.requests[-1]) == "edited, my words"
    assert len(chat.requests) == 4
    assert not {"restored", "loop.round_2.restored"} & set(executed(after))
    images = [candidates(server.client, result) for result in (before, after)]
    assert [difference(a, b) == 0 for a, b in zip(*images, strict=True)] == [True, True, False, False]
    assert "Prompt: edited, my words\nChanged: Written by you." in after.outputs["report"]["text"][0]

    # A second edit keeps the first; without edits the agent is asked from round 3 on.
    graph["loop"]["inputs"]["edited_prompts"] = '{"3": "edited, my words", "5": "edited, at last"}'
    graph["loop"]["inputs"]["rounds"] = 5
    assert prompts(server.client.run(graph)) == [*prompts(after), "edited, at last"]
    assert len(chat.requests) == 4
    graph["loop"]["inputs"] |= {"edited_prompts": "", "rounds": 4}
    assert prompts(server.client.run(graph)) == prompts(before)
    assert len(chat.requests) == 6


@pytest.mark.parametrize(
    ("edits", "complaint"),
    [
        ("{", "It takes prompts by the number"),
        ("[1]", "It takes prompts by the number"),
        ('{"1": "x"}', "from 2 on"),
        ('{"2": 3}', "from 2 on"),
        ('{"2": " "}', "your prompt for round 2 is empty"),
        ('{"2": "' + "x" * 501 + '"}', "501 characters and max_length allows 500"),
    ],
)
def test_edits_that_cannot_be_used_are_told_before_anything_is_restored(
    server: ComfyServer, chat: ChatServer, edits: str, complaint: str
):
    # Without a preview beside the loop, which the host may run first.
    graph = tint(chat.url, 3, edited_prompts=edits)
    graph["start"]["inputs"]["prompt"] = f"unusable {edits[:20]}"
    seen: list[str] = []
    with pytest.raises(PromptError, match=complaint):
        server.client.run(graph, on_message=lambda kind, data: seen.append(data.get("node", "")))
    assert "restored" not in seen


def test_each_round_is_told_before_the_next_one_is_asked_for(server: ComfyServer, chat: ChatServer):
    graph = steered(chat, 3, "told", drift_limit=5.0)
    result = server.client.run(graph)
    order = [
        data["rows"][-1]["round"] if kind == "realisr.timeline" else data["node"]
        for kind, data in result.messages
        if (kind == "realisr.timeline" and data["rows"]) or (kind == "executing" and data["node"] in ROUND_BEGINS)
    ]
    assert order == [1, "loop.agent_2", 2, "loop.agent_3", 3, 3]
    messages = told(result)
    assert [data["state"] for data in messages] == ["running"] * 4 + ["done"]
    assert [[row["round"] for row in data["rows"]] for data in messages] == [[], [1], [2], [3], [1, 2, 3]]
    assert {(data["node"], data["total"]) for data in messages} == {("loop", 3)}

    rows = messages[-1]["rows"]
    assert [row["prompt"] for row in rows] == prompts(result)
    assert (rows[0]["reason"], rows[2]["reason"]) == ("", "it was blurred")
    assert all(0 <= row["drift"] < 5 for row in rows)
    pictures = [server.client.image(row["picture"]).convert("RGB") for row in rows]
    images = candidates(server.client, result)
    apart = [[difference(picture, image) for image in images] for picture in pictures]
    assert [row.index(min(row)) for row in apart] == [0, 1, 2]

    # Kept rounds are told again, with what was told of them before.
    graph["loop"]["inputs"]["rounds"] = 4
    more = told(server.client.run(graph))
    assert more[1]["rows"] == rows
    assert [row["round"] for row in more[-1]["rows"]] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["--cache-classic", "--cache-lru=5", "--cache-lru=200", "--cache-none"])
def test_stopping_with_every_kind_of_cache(start_server, chat: ChatServer, arguments: str):
    with start_server(arguments) as server:
        graph = steered(chat, 4, "cached")
        for number, made in ((2, 2), (3, 3)):
            stopped = server.client.run(graph, on_message=stop_during(server, f"loop.agent_{number}"))
            assert len(prompts(stopped)) == made
        assert len(prompts(server.client.run(graph))) == 4
