"""Agent Prompt Refiner and Caption for Restoration with a chat endpoint that speaks HTTP."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from harness.chat_server import ChatRequest, ChatServer, Failure, Hang
from harness.host import InProcessHost
from harness.waiting import HANG, wait_until

KEY = "sk-test-9d1f6e2b44c0"
ANSWER = json.dumps({"prompt": "a red door, chipped paint", "changes": "chipped paint", "reason": "flat texture"})
OPTIONS = {
    "model": "tiny-vlm",
    "key_variable": "OPENAI_API_KEY",
    "temperature": 0.2,
    "max_tokens": 4096,
    "timeout": HANG,
    "retries": 0,
    "image_detail": "auto",
    "image_size": 1024,
    "jpeg_quality": 90,
}


@pytest.fixture
def chat(host: InProcessHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with ChatServer(ANSWER) as server:
        yield server


def image(height: int = 24, width: int = 32, batch: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.rand(batch, height, width, channels)


def endpoint(chat: ChatServer, **options: Any) -> Any:
    from realisr.nodes.vlm import ChatEndpointNode

    return InProcessHost.run(ChatEndpointNode, **{"base_url": chat.url, **OPTIONS, **options})[0]


def refine(chat: ChatServer, **inputs: Any) -> tuple[str, str, str]:
    from realisr.nodes.agent import AgentPromptRefiner

    given = {
        "image": image(),
        "previous_prompt": "a red door",
        "vlm": endpoint(chat),
        "seed": 7,
        "max_length": 1500,
        "on_failure": "stop",
        **inputs,
    }
    return InProcessHost.run(AgentPromptRefiner, **given)


def caption(chat: ChatServer, **inputs: Any) -> str:
    from realisr.nodes.agent import CaptionForRestoration

    given = {
        "image": image(),
        "vlm": endpoint(chat),
        "style": "sentences (VICR)",
        "seed": 7,
        "max_length": 1500,
        **inputs,
    }
    return InProcessHost.run(CaptionForRestoration, **given)[0]


def test_a_round(chat):
    assert refine(chat, previous_result=image(96, 128)) == (
        "a red door, chipped paint",
        "chipped paint",
        "flat texture",
    )
    (request,) = chat.requests
    assert [each.size for each in request.images] == [(32, 24), (128, 96)]
    assert (request.body or {})["seed"] == 7
    assert "at most 1500 characters" in request.texts[0]


def test_the_initial_prompt_goes_along(chat):
    refine(chat, initial_prompt="a door")
    refine(chat)
    first, second = chat.requests
    assert first.texts[-1].endswith("Initial prompt:\na door\n\nPrevious prompt:\na red door")
    assert "Initial prompt" not in second.texts[-1]


def test_the_first_round_has_one_picture(chat):
    refine(chat)
    assert len(chat.requests[0].images) == 1


def test_alpha_is_shown_as_white(chat):
    transparent = torch.zeros(1, 8, 8, 4)
    refine(chat, image=transparent)
    assert chat.requests[0].images[0].getextrema() == ((255, 255),) * 3


def test_an_artists_instruction_is_used(chat):
    refine(chat, instruction="Write at most {max_length} characters about {colour}.", max_length=99)
    assert chat.requests[0].texts[0].startswith("Write at most 99 characters about {colour}.")
    caption(chat, instruction="Only nouns.")
    assert chat.requests[1].texts[0] == "Only nouns."


def test_the_endpoints_own_temperature(chat):
    refine(chat, vlm=endpoint(chat, temperature=-1.0))
    assert "temperature" not in (chat.requests[0].body or {})


def test_failure_stops_by_default(chat):
    chat.default = Failure(500, "no memory left")
    with pytest.raises(ValueError, match=r"Agent Prompt Refiner: .* answered 500: no memory left"):
        refine(chat)


def test_failure_can_go_on_with_the_previous_prompt(chat, caplog):
    chat.default = Failure(401, echo_authorization=True)
    caplog.set_level(logging.WARNING)
    prompt, changes, reason = refine(chat, on_failure="continue with the previous prompt")
    assert prompt == "a red door"
    assert changes.startswith("Nothing")
    assert "answered 401" in reason
    assert "Going on with the previous prompt" in caplog.text
    assert KEY not in reason + caplog.text


def test_a_missing_key_stops_in_any_case(chat, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    remote = endpoint(chat, base_url="https://api.openai.com/v1")
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not set"):
        refine(chat, vlm=remote, on_failure="continue with the previous prompt")


@pytest.mark.parametrize("name", ["image", "previous_result"])
def test_a_batch_is_refused_with_what_to_do(chat, name):
    with pytest.raises(ValueError, match=rf"{name} is a batch of 3 images.*Rebatch Images \(batch size 1\)"):
        refine(chat, **{name: image(batch=3)})
    assert chat.requests == []


def test_prompts_that_cannot_be_revised(chat):
    with pytest.raises(ValueError, match="previous_prompt is empty"):
        refine(chat, previous_prompt="  ")
    with pytest.raises(ValueError, match="has 60 characters and max_length allows 50"):
        refine(chat, previous_prompt="x" * 60, max_length=50)
    assert chat.requests == []


def test_captions_in_both_styles(chat):
    chat.default = "A red door in a brick wall."
    assert caption(chat) == "A red door in a brick wall."
    assert caption(chat, style="tags (VICR-Faithful)") == "A red door in a brick wall."
    sentences, tags = (request.texts[0] for request in chat.requests)
    assert "sentences" in sentences
    assert "comma-separated list" in tags
    chat.default = Failure(500)
    with pytest.raises(ValueError, match=r"Caption for Restoration: .* answered 500"):
        caption(chat)


@pytest.mark.timeout(HANG, func_only=True)
def test_cancel_stops_a_hanging_request(chat):
    import comfy.model_management

    def press(request: ChatRequest) -> Hang:
        comfy.model_management.interrupt_current_processing()
        return Hang()

    chat.default = press
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        refine(chat, vlm=endpoint(chat, timeout=2 * HANG), on_failure="continue with the previous prompt")
    wait_until(lambda: chat.requests[0].abandoned)
    assert len(chat.requests) == 1


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("base_url", "ftp://host", "not an http"),
        ("base_url", f"http://host/v1?key={KEY}", "must not hold secrets"),
        ("model", " ", "model is empty"),
        ("key_variable", KEY, "not the name of a key's environment variable"),
    ],
)
def test_what_is_refused_before_the_queue(host, field, value, told):
    from realisr.nodes.vlm import ChatEndpointNode

    answer = ChatEndpointNode.validate_inputs(**{field: value})
    assert isinstance(answer, str)
    assert told in answer
    assert KEY not in answer


def test_good_settings_pass(host):
    from realisr.nodes.vlm import ChatEndpointNode

    assert ChatEndpointNode.validate_inputs("localhost:11434", "llava", "OPENAI_API_KEY") is True
    assert ChatEndpointNode.validate_inputs() is True


def test_the_refiners_widgets_can_be_reused(host):
    from realisr.nodes.agent import AgentPromptRefiner, refiner_options

    own = [item.id for item in AgentPromptRefiner.GET_SCHEMA().inputs]
    assert [item.id for item in refiner_options()] == own[-5:-1]
    assert own[-1] == "initial_prompt", "inputs that came later stand at the end, as saved workflows have them"
    assert refiner_options("agent_seed")[0].id == "agent_seed"
