"""The agent on a running ComfyUI: cancelling it, and looking for the key in everything a run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from comfy_server import ComfyServer, PromptError, PromptInterrupted
from harness.chat_server import ChatRequest, ChatServer, Failure, Hang
from harness.waiting import HANG, wait_until

KEY = "sk-test-c41f09e7d2ab55"
PROMPT = "a red door, chipped paint"
REFINER = "3"


@pytest.fixture(scope="module")
def server(start_server: Callable[..., AbstractContextManager[ComfyServer]]) -> Iterator[ComfyServer]:
    """A server with a key in its environment that writes everything it can into its log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("OPENAI_LOG", "debug")
        patch.delenv("OPENAI_BASE_URL", raising=False)
        with start_server("--verbose", "DEBUG") as running:
            yield running


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with ChatServer(json.dumps({"prompt": PROMPT, "changes": "paint", "reason": "flat"})) as running:
        yield running


def graph(chat: ChatServer, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Caption-less refinement of a random image; the prompt is shown, and the image saved with its workflow."""
    return {
        "1": {"class_type": "RealISRTest_RandomImage", "inputs": {"seed": 1, "width": 64, "height": 48, "batch": 1}},
        "2": {
            "class_type": "RealISR_ChatEndpoint",
            "inputs": {
                "base_url": chat.url,
                "model": "tiny-vlm",
                "key_variable": "OPENAI_API_KEY",
                "temperature": 0.2,
                "max_tokens": 4096,
                "timeout": 2 * HANG,
                "retries": 1,
                "image_detail": "auto",
                "image_size": 1024,
                "jpeg_quality": 90,
            },
        },
        REFINER: {
            "class_type": "RealISR_AgentPromptRefiner",
            "inputs": {
                "image": ["1", 0],
                "previous_prompt": "a red door",
                "vlm": ["2", 0],
                "previous_result": ["1", 0],
                "seed": seed,
                "max_length": 1500,
                "on_failure": "stop",
                "instruction": "",
                **options,
            },
        },
        "4": {"class_type": "PreviewAny", "inputs": {"source": [REFINER, 0]}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": [REFINER, 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": f"agent_{seed}"}},
    }


def shown(result: Any, node: str) -> str:
    return result.outputs[node]["text"][0]


def test_a_run_and_its_cache(server, chat):
    result = server.client.run(graph(chat))
    assert shown(result, "4") == PROMPT
    assert chat.requests[0].headers["authorization"] == f"Bearer {KEY}"
    server.client.run(graph(chat))
    assert len(chat.requests) == 1
    server.client.run(graph(chat, seed=1))
    assert len(chat.requests) == 2


def test_a_batch_as_the_node_says(server, chat):
    """Refused as it is, one request per image behind Rebatch Images."""
    batch = graph(chat, seed=2)
    batch["1"]["inputs"]["batch"] = 2
    del batch[REFINER]["inputs"]["previous_result"]
    with pytest.raises(PromptError, match="Rebatch Images"):
        server.client.run(batch)
    batch["7"] = {"class_type": "RebatchImages", "inputs": {"images": ["1", 0], "batch_size": 1}}
    batch[REFINER]["inputs"]["image"] = ["7", 0]
    server.client.run(batch)
    assert len(chat.requests) == 2
    assert chat.requests[0].images[0].tobytes() != chat.requests[1].images[0].tobytes()


def echoed_in_answer(request: ChatRequest) -> str:
    return json.dumps({"prompt": f"a door {request.headers['authorization']}", "changes": "", "reason": KEY})


def test_the_key_is_in_nothing_that_a_run_leaves_behind(server, chat):
    """Whatever the endpoint does with it: it is quoted in errors and in answers here."""
    found: list[str] = []
    chat.script(echoed_in_answer)
    result = server.client.run(graph(chat, seed=10))
    assert shown(result, "4") == "a door Bearer [key]"
    found += [json.dumps(result.messages), json.dumps(server.client.history(result.prompt_id))]

    chat.default = Failure(401, echo_authorization=True)
    with pytest.raises(PromptError, match=r"answered 401.*Bearer \[key\]") as refused:
        server.client.run(graph(chat, seed=11))
    found += [str(refused.value), refused.value.exception_message]

    chat.default = Failure(500, echo_authorization=True)
    go_on = graph(chat, seed=12, on_failure="continue with the previous prompt")
    result = server.client.run(go_on)
    assert shown(result, "4") == "a red door"
    assert "[key]" in shown(result, "5")

    pasted = graph(chat, seed=13)
    del pasted["6"]  # ComfyUI would run what does not depend on the refused node, and keep the workflow
    pasted["2"]["inputs"]["key_variable"] = KEY
    with pytest.raises(PromptError, match="not the name of a key's environment variable") as refused:
        server.client.run(pasted)
    found += [str(refused.value), json.dumps(server.client.get("/history")), json.dumps(server.client.get("/queue"))]

    assert len(chat.requests) == 4
    assert {request.headers["authorization"] for request in chat.requests} == {f"Bearer {KEY}"}
    written = [path for path in server.base.rglob("*") if path.is_file() and "custom_nodes" not in path.parts]
    pictures = [path for path in written if path.suffix == ".png" and path.name.startswith("agent_")]
    assert any(b"RealISR_AgentPromptRefiner" in path.read_bytes() for path in pictures), "no workflow in the PNGs"
    assert "chat/completions" in server.log() or "httpx" in server.log(), "the log is not at its most talkative"
    assert [text[:200] for text in found if KEY in text] == []
    assert [str(path) for path in written if KEY.encode() in path.read_bytes()] == []


@pytest.mark.timeout(HANG, func_only=True)
def test_cancel_ends_a_hanging_request(server, chat):
    chat.default = Hang()

    def cancel(kind: str, data: dict) -> None:
        if kind == "executing" and data["node"] == REFINER:
            wait_until(lambda: chat.requests)
            server.client.interrupt()

    with pytest.raises(PromptInterrupted, match="AgentPromptRefiner"):
        server.client.run(graph(chat, seed=20), on_message=cancel)
    wait_until(lambda: chat.requests[0].abandoned)
    assert len(chat.requests) == 1

    chat.default = json.dumps({"prompt": PROMPT})
    assert shown(server.client.run(graph(chat, seed=20)), "4") == PROMPT
