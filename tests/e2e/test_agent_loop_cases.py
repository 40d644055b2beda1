"""Loops wired in unusual ways, loops that fail, and loops that are stopped; on a real ComfyUI with a real endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from comfy_server import ComfyServer, PromptError, PromptInterrupted
from harness.agent_loop import (
    Graph,
    candidates,
    difference,
    executed,
    loop,
    node,
    numbered,
    previous_prompt,
    prompts,
    revised,
    tint,
)
from harness.chat_server import ChatServer, Failure, Hang
from harness.waiting import wait_until

pytest.importorskip("openai")

PROMPTS = ["a house", "a house, cue 1", "a house, cue 1, cue 2"]


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with ChatServer(default=numbered) as running:
        yield running


def fresh(graph: Graph, prompt: str) -> Graph:
    """The graph with a prompt of its own, so that no other test has left results of it in the cache."""
    graph["start"]["inputs"]["prompt"] = prompt
    return graph


def test_a_list_of_images_runs_each_through_the_rounds(server: ComfyServer, chat: ChatServer):
    """Round by round: both images of round 1, then both of round 2."""
    graph = fresh(tint(chat.url, 2), "lists")
    graph["other"] = node("RealISRTest_RandomImage", seed=2, width=24, height=16, batch=1)
    graph["both"] = node("CreateList", **{"inputs.input0": ["lq", 0], "inputs.input1": ["other", 0]})
    graph["start"]["inputs"]["image"] = ["both", 0]
    result = server.client.run(graph)
    assert prompts(result) == ["lists", "lists", "lists, cue 1", "lists, cue 1"]
    images = candidates(server.client, result)
    seen = [[image.convert("RGB") for image in request.images] for request in chat.requests]
    assert [difference(pair[1], image) < 3 for pair, image in zip(seen, images[:2], strict=True)] == [True, True]
    assert difference(seen[0][0], seen[1][0]) > 1
    assert "Round 2, image 2\nPrompt: lists, cue 1" in result.outputs["report"]["text"][0]

    more = fresh(graph, "lists") | {"loop": loop(3, ["restored", 0])}
    assert len(prompts(server.client.run(more))) == 6
    assert len(chat.requests) == 4


def test_a_restoration_with_a_lazy_branch_runs_only_the_branch_it_takes(server: ComfyServer, chat: ChatServer):
    body = {
        "unused": node("RealISRTest_TintByText", image=["restored", 0], text=["start", 0]),
        "switch": node("ComfySwitchNode", switch=False, on_false=["restored", 0], on_true=["unused", 0]),
    }
    graph = fresh(tint(chat.url, 2, body), "lazy")
    graph["loop"]["inputs"]["image"] = ["switch", 0]
    result = server.client.run(graph)
    assert prompts(result) == ["lazy", "lazy, cue 1"]
    ran = executed(result)
    assert "loop.round_2.switch" in ran
    assert not [node_id for node_id in ran if node_id.endswith("unused")]


def test_a_restoration_that_expands_itself(server: ComfyServer, chat: ChatServer):
    plain = server.client.run(fresh(tint(chat.url, 3), "expanded"))
    graph = fresh(tint(chat.url, 3), "expanded")
    graph["restored"]["class_type"] = "RealISRTest_ExpandToTint"
    expanded = server.client.run(graph)
    assert prompts(expanded) == prompts(plain)
    both = zip(candidates(server.client, plain), candidates(server.client, expanded), strict=True)
    assert [difference(a, b) for a, b in both] == [0, 0, 0]


def test_a_loop_after_a_loop(server: ComfyServer, chat: ChatServer):
    graph = fresh(tint(chat.url, 2), "first")
    graph |= {
        "last": node("RealISRTest_LastOfList", images=["loop", 0]),
        "start2": node("RealISR_AgentRefinementStart", image=["last", 0], prompt="second"),
        "restored2": node("RealISRTest_TintByText", image=["start2", 1], text=["start2", 0]),
        "loop2": loop(3, ["restored2", 0]),
        "prompts2": node("PreviewAny", source=["loop2", 1]),
    }
    graph["loop2"]["inputs"]["loop"] = ["start2", 3]
    result = server.client.run(graph)
    assert prompts(result) == ["first", "first, cue 1"]
    assert result.outputs["prompts2"]["text"] == ["second", "second, cue 1", "second, cue 1, cue 2"]
    lq_of_second = chat.requests[1].images[0].convert("RGB")
    assert difference(lq_of_second, candidates(server.client, result)[-1]) < 3


def test_a_loop_inside_a_loop(server: ComfyServer, chat: ChatServer):
    """The inner one runs its rounds in each round of the outer one, from that round's prompt."""
    graph = fresh(tint(chat.url, 2), "outer")
    graph |= {
        "start2": node("RealISR_AgentRefinementStart", image=["start", 1], prompt=["start", 0]),
        "restored2": node("RealISRTest_TintByText", image=["start2", 1], text=["start2", 0]),
        "beside": node("PreviewImage", images=["restored2", 0]),
        "loop2": loop(2, ["restored2", 0]),
        "last": node("RealISRTest_LastOfList", images=["loop2", 0]),
        "prompts2": node("PreviewAny", source=["loop2", 1]),
    }
    graph["loop2"]["inputs"]["loop"] = ["start2", 3]
    graph["loop"]["inputs"]["image"] = ["last", 0]
    result = server.client.run(graph)
    assert prompts(result) == ["outer", "outer, cue 1"]
    shown = [
        data["output"]["text"]
        for kind, data in result.messages
        if kind == "executed" and data["display_node"] == "prompts2"
    ]
    assert shown == [["outer", "outer, cue 1"], ["outer, cue 1", "outer, cue 1, cue 2"]]
    previews = [data for kind, data in result.messages if kind == "executed" and data["display_node"] == "beside"]
    assert len(previews) == 4
    images = candidates(server.client, result)
    assert difference(images[0], images[1]) > 1


def test_the_round_number_and_results_of_other_sizes(server: ComfyServer, chat: ChatServer):
    body = {
        "scaled": node(
            "ImageScale",
            image=["restored", 0],
            upscale_method="bilinear",
            width=["start", 2],
            height=8,
            crop="disabled",
        ),
    }
    graph = fresh(tint(chat.url, 3, body), "sizes")
    graph["loop"]["inputs"]["image"] = ["scaled", 0]
    images = candidates(server.client, server.client.run(graph))
    assert [image.size for image in images] == [(1, 8), (2, 8), (3, 8)]


def test_two_agents_on_one_restoration(server: ComfyServer, chat: ChatServer):
    with ChatServer(default=lambda request: revised(f"{previous_prompt(request)}!")) as loud:
        graph = fresh(tint(chat.url, 2), "shared")
        graph["agent2"] = {**graph["agent"], "inputs": {**graph["agent"]["inputs"], "base_url": loud.url}}
        graph["loop2"] = loop(2, ["restored", 0], vlm=["agent2", 0])
        graph["prompts2"] = node("PreviewAny", source=["loop2", 1])
        result = server.client.run(graph)
        assert prompts(result) == ["shared", "shared, cue 1"]
        assert result.outputs["prompts2"]["text"] == ["shared", "shared!"]
        assert (len(chat.requests), len(loud.requests)) == (1, 1)


@pytest.mark.parametrize(
    "change", [{"instruction": "Be bold."}, {"seed": 3}, {"model": "oracle"}], ids=["instruction", "seed", "model"]
)
def test_another_agent_writes_the_prompts_again(server: ComfyServer, chat: ChatServer, change: dict[str, Any]):
    graph = fresh(tint(chat.url, 3), f"another {next(iter(change))}")
    server.client.run(graph)
    server.client.run(graph)
    assert len(chat.requests) == 2
    graph["agent" if "model" in change else "loop"]["inputs"].update(change)
    result = server.client.run(graph)
    assert len(chat.requests) == 4
    assert "restored" not in executed(result)


def test_output_nodes_that_were_not_asked_for_stay_out_of_the_rounds(server: ComfyServer, chat: ChatServer):
    """As when the artist queues one output node: the preview beside the restoration is not among the targets."""
    graph = fresh(tint(chat.url, 2, {"beside": node("PreviewImage", images=["restored", 0])}), "partial")
    body = {"prompt": graph, "client_id": server.client.client_id, "partial_execution_targets": ["prompts"]}
    prompt_id = server.client.post("/prompt", body)["prompt_id"]
    outputs = server.client.wait(prompt_id)
    assert set(outputs) == {"prompts"}


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_failing_agent_names_the_round_and_the_next_run_goes_on_there(server: ComfyServer, chat: ChatServer):
    chat.script(numbered, Failure(500, "out of order"))
    graph = fresh(tint(chat.url, 4), "failing")
    with pytest.raises(PromptError, match=r"round 3: .*out of order") as caught:
        server.client.run(graph)
    assert (caught.value.node_id, caught.value.node_type) == ("loop", "RealISR_AgentRefinementLoop")
    result = server.client.run(graph)
    assert len(prompts(result)) == 4
    assert [previous_prompt(request) for request in chat.requests] == [
        "failing",
        "failing, cue 1",
        "failing, cue 1",
        "failing, cue 1, cue 2",
    ]


def test_a_failing_agent_can_be_gone_without(server: ComfyServer, chat: ChatServer):
    chat.script(numbered, Failure(500, "out of order"))
    graph = fresh(tint(chat.url, 4, on_failure="continue with the previous prompt"), "going on")
    result = server.client.run(graph)
    assert prompts(result) == ["going on", "going on, cue 1", "going on, cue 1", "going on, cue 1, cue 2"]
    images = candidates(server.client, result)
    assert difference(images[1], images[2]) == 0
    assert "out of order" in result.outputs["report"]["text"][0]


def test_a_failing_restoration_keeps_the_rounds_before_it(server: ComfyServer, chat: ChatServer):
    body = {"checked": node("RealISRTest_FailOnText", image=["restored", 0], text=["start", 0], word="cue 2")}
    graph = fresh(tint(chat.url, 3, body), "fragile")
    graph["loop"]["inputs"]["image"] = ["checked", 0]
    with pytest.raises(PromptError, match="the text holds 'cue 2'"):
        server.client.run(graph)
    with pytest.raises(PromptError, match="the text holds 'cue 2'"):
        server.client.run(graph)
    # Round 2 was kept, and the agent's answer for round 3 too.
    assert len(chat.requests) == 2


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"restored": node("RealISRTest_TintByText", image=["start", 1], text="fixed")}, "does not depend on the"),
        ({"start": node("RealISR_AgentRefinementStart", image=["lq", 0], prompt=" ")}, "prompt is empty"),
        (
            {"lq": node("RealISRTest_RandomImage", seed=1, width=8, height=8, batch=3)},
            r"image is a batch of 3.*Rebatch Images",
        ),
    ],
    ids=["prompt not wired", "no prompt", "batch"],
)
def test_mistakes_are_told_before_anything_is_restored(
    server: ComfyServer, chat: ChatServer, changed: Graph, complaint: str
):
    seen: list[str] = []

    def note(kind: str, data: dict[str, Any]) -> None:
        if kind == "executing":
            seen.append(data["node"])

    graph = fresh(tint(chat.url, 2), f"mistake {complaint}") | changed
    with pytest.raises(PromptError, match=complaint):
        server.client.run(graph, on_message=note)
    assert "loop" in seen or "start" in seen
    assert "restored" not in seen
    assert chat.requests == []


def test_a_restoration_that_makes_several_images_of_one_is_refused(server: ComfyServer, chat: ChatServer):
    body = {"twice": node("CreateList", **{"inputs.input0": ["restored", 0], "inputs.input1": ["restored", 0]})}
    graph = fresh(tint(chat.url, 2, body), "several")
    graph["loop"]["inputs"]["image"] = ["twice", 0]
    with pytest.raises(PromptError, match=r"1 image\(s\) went into .*, but 2 came"):
        server.client.run(graph)


def test_a_batch_of_restorations_is_refused(server: ComfyServer, chat: ChatServer):
    body = {"batch": node("RepeatImageBatch", image=["restored", 0], amount=2)}
    graph = fresh(tint(chat.url, 2, body), "batch")
    graph["loop"]["inputs"]["image"] = ["batch", 0]
    with pytest.raises(PromptError, match="restored image is a batch of 2"):
        server.client.run(graph)


def test_cancel_while_an_agent_does_not_answer(server: ComfyServer, chat: ChatServer):
    chat.script(numbered, Hang())
    graph = fresh(tint(chat.url, 3), "hanging")

    def cancel(kind: str, data: dict[str, Any]) -> None:
        if kind == "executing" and data["node"] == "loop.agent_3":
            wait_until(lambda: len(chat.requests) == 2)
            server.client.interrupt()

    with pytest.raises(PromptInterrupted, match="RealISR_AgentRefinementLoop"):
        server.client.run(graph, on_message=cancel)
    wait_until(lambda: chat.requests[1].abandoned)
    assert prompts(server.client.run(graph)) == ["hanging", "hanging, cue 1", "hanging, cue 1, cue 2"]
    assert len(chat.requests) == 3


# --- the frontend and other caches -----------------------------------------------------------------------------------


def test_a_workflow_from_the_frontend(server: ComfyServer, frontend, chat: ChatServer):
    """Laid out by the real frontend, saved, opened again, exported and run."""
    graph = fresh(tint(chat.url, 3), "from the frontend")
    frontend.open_api(graph)
    saved = frontend.export_ui()
    opened = frontend.open(saved)
    assert (opened.missing_nodes, opened.errors) == ([], [])
    exported = frontend.export_api()
    (save,) = (node_id for node_id, found in exported.items() if found["class_type"] == "SaveImage")
    (loop_id,) = (
        node_id for node_id, found in exported.items() if found["class_type"] == "RealISR_AgentRefinementLoop"
    )
    result = server.client.run(exported)
    assert len(result.images(save)) == 3
    exported[loop_id]["inputs"]["rounds"] = 4
    assert len(server.client.run(exported).images(save)) == 4
    assert len(chat.requests) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "resumes"),
    [("--cache-classic", True), ("--cache-lru=5", True), ("--cache-lru=200", True), ("--cache-none", False)],
)
def test_every_kind_of_cache(start_server, chat: ChatServer, arguments: str, resumes: bool):
    with start_server(arguments) as server:
        assert prompts(server.client.run(tint(chat.url, 3))) == PROMPTS
        assert len(chat.requests) == 2
        more = server.client.run(tint(chat.url, 4))
        assert prompts(more)[:3] == PROMPTS
        assert len(chat.requests) == (3 if resumes else 5)
