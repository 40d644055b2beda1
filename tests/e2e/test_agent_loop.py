"""VICR's rounds on a real ComfyUI: a tiny FLUX Fill, an agent behind a real HTTP endpoint, and the host's cache."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from PIL import Image

from comfy_server import ComfyServer
from harness.agent_loop import (
    BODY,
    KEY,
    candidates,
    difference,
    executed,
    initial_prompt,
    numbered,
    previous_prompt,
    prompts,
    restoration,
    revised,
    save_models,
)
from harness.chat_server import ChatServer

pytest.importorskip("openai")

PROMPTS = ["a house", "a house, cue 1", "a house, cue 1, cue 2", "a house, cue 1, cue 2, cue 3"]


@pytest.fixture(scope="module")
def comfy(start_server) -> Iterator[ComfyServer]:
    """A ComfyUI with a key in its environment, allowed for this machine, and the small models in its folders."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("REALISR_TEST_KEY", KEY)
        environment.setenv("REALISR_KEY_VARIABLES", "REALISR_TEST_KEY")
        with start_server() as running:
            save_models(running.models)
            yield running


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with ChatServer(default=numbered, api_key=KEY) as running:
        yield running


def rounds_run(ids: list[str]) -> set[int]:
    """The rounds that the copies among these nodes belong to."""
    return {int(node_id.split(".")[1].removeprefix("round_")) for node_id in ids if ".round_" in node_id}


def test_three_rounds(comfy: ComfyServer, chat: ChatServer):
    """Prompts and images differ; round r's agent saw the LQ image and the raw result of round r - 1."""
    result = comfy.client.run(restoration(chat.url, rounds=3))
    assert prompts(result) == PROMPTS[:3]
    images = candidates(comfy.client, result)
    assert [image.size for image in images] == [(48, 32)] * 3
    assert all(difference(images[i], images[j]) > 1 for i in range(3) for j in range(i))

    assert [previous_prompt(request) for request in chat.requests] == PROMPTS[:2]
    assert [initial_prompt(request) for request in chat.requests] == PROMPTS[:1] * 2
    for request, before in zip(chat.requests, images, strict=False):
        lq, seen = (image.convert("RGB") for image in request.images)
        assert lq.size == (24, 16)
        assert difference(seen, before) < 3
        assert difference(lq, chat.requests[0].images[0].convert("RGB")) == 0
        assert all(difference(seen, other) > difference(seen, before) for other in images if other is not before)
        assert request.headers["authorization"] == f"Bearer {KEY}"


def test_the_report_tells_the_rounds(comfy: ComfyServer, chat: ChatServer):
    result = comfy.client.run(restoration(chat.url, rounds=3))
    (report,) = result.outputs["report"]["text"]
    assert report.split("\n\n")[2].splitlines() == [
        "Round 3",
        f"Prompt: {PROMPTS[2]}",
        f"Changed: added a cue to {PROMPTS[1]}",
        "Why: it was blurred",
    ]


def test_an_agent_that_changes_nothing_gets_the_same_image(comfy: ComfyServer, chat: ChatServer):
    """So noise, steps and guidance are the same in every round, whatever the noise seed."""
    chat.default = lambda request: revised(previous_prompt(request))
    images = [candidates(comfy.client, comfy.client.run(restoration(chat.url, rounds=3, seed=seed))) for seed in (5, 6)]
    assert [difference(images[seed][0], image) for seed in (0, 1) for image in images[seed]] == [0] * 6
    assert difference(images[0][0], images[1][0]) > 1


def test_more_rounds_run_only_the_new_ones_and_fewer_run_none(comfy: ComfyServer, chat: ChatServer):
    first = comfy.client.run(restoration(chat.url, rounds=3))
    assert rounds_run(executed(first)) == {2, 3}
    assert len(chat.requests) == 2

    more = comfy.client.run(restoration(chat.url, rounds=4))
    assert len(chat.requests) == 3
    assert set(executed(more)) == {
        "loop",
        "loop.result_2",
        "loop.result_3",  # kept, and only handed on
        "loop.agent_4",
        *(f"loop.round_4.{name}" for name in BODY),
        "loop.result_4",
        "loop.candidates",
        "save",
        "prompts",
        "report",
    }
    assert prompts(more) == PROMPTS
    before, after = candidates(comfy.client, first), candidates(comfy.client, more)
    assert [difference(a, b) for a, b in zip(before, after, strict=False)] == [0, 0, 0]

    fewer = comfy.client.run(restoration(chat.url, rounds=2))
    assert set(executed(fewer)) == {
        "loop",
        "loop.result_2",
        "loop.candidates",
        "save",
        "prompts",
        "report",
    }
    assert prompts(fewer) == PROMPTS[:2]
    assert len(chat.requests) == 3


def test_another_noise_seed_restores_all_rounds_again(comfy: ComfyServer, chat: ChatServer):
    comfy.client.run(restoration(chat.url, rounds=2, seed=11))
    again = comfy.client.run(restoration(chat.url, rounds=2, seed=12))
    assert {"noise", "sample", "loop.agent_2", "loop.round_2.sample"} <= set(executed(again))
    assert not {"unet", "vae", "builder", "text", "lq", "start"} & set(executed(again))
    assert len(chat.requests) == 2


def test_previews_and_progress_of_a_round_are_shown_on_the_artists_nodes(comfy: ComfyServer, chat: ChatServer):
    result = comfy.client.run(restoration(chat.url, rounds=2, seed=21))
    shown = [data for kind, data in result.messages if kind == "executed" and data["display_node"] == "preview"]
    assert [data["node"] for data in shown] == ["preview", "loop.round_2.preview"]
    images = candidates(comfy.client, result)
    previews = [comfy.client.image(data["output"]["images"][0]).convert("RGB") for data in shown]
    assert [difference(a, b) for a, b in zip(previews, images, strict=True)] == [0, 0]
    running = {
        (data["node"], data["display_node"]) for kind, data in result.messages if kind == "executing" and data["node"]
    }
    assert {("sample", "sample"), ("loop.round_2.sample", "sample"), ("loop.agent_2", "loop")} <= running


def test_one_round_needs_no_agent(comfy: ComfyServer, chat: ChatServer):
    result = comfy.client.run(restoration(chat.url, rounds=1, seed=31))
    assert prompts(result) == ["a house"]
    assert len(candidates(comfy.client, result)) == 1
    assert chat.requests == []
    assert "agent" not in executed(result)


def test_the_key_is_nowhere(comfy: ComfyServer, chat: ChatServer):
    """Neither in what the host keeps of the run (graph, messages, outputs) nor in its files and log."""
    result = comfy.client.run(restoration(chat.url, rounds=3, seed=41))
    assert chat.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in json.dumps(comfy.client.history(result.prompt_id))
    assert KEY not in json.dumps(result.messages)
    assert KEY not in json.dumps(comfy.client.object_info())
    assert KEY not in comfy.log()
    written = [path for folder in ("output", "temp", "user") for path in (comfy.base / folder).rglob("*")]
    files = [path for path in written if path.is_file()]
    assert any(path.suffix == ".png" and "prompt" in Image.open(path).info for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
