"""A server on this machine that answers in bad faith."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from harness.chat_server import ChatRequest, ChatServer, Failure, Flood, Raw
from realisr.services.vlm.chat.bounded import LONGEST_BODY
from realisr.services.vlm.chat.endpoint import ChatEndpoint
from realisr.services.vlm.protocol import AnswerError, Question, ask
from realisr.services.vlm.questions import RefinedPrompt, refine_question

pytest.importorskip("openai")

pytestmark = pytest.mark.timeout(120)

KEY = "sk-test-5f0c6b1e77/aa+n0t"
REFINED = RefinedPrompt("a red door", "paint", "flat")
ANSWER = json.dumps({"prompt": REFINED.prompt, "changes": REFINED.changes, "reason": REFINED.reason})


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with ChatServer(ANSWER) as server:
        yield server


def question() -> Question:
    return refine_question(torch.zeros(8, 8, 3), "a red door")


def refine(chat: ChatServer, **options: Any) -> object:
    endpoint = ChatEndpoint(chat.url, "tiny-vlm", **{"backoff": 0.01, "timeout": 60.0, "retries": 0, **options})
    return ask(endpoint, question(), lambda: None)


def fail(chat: ChatServer, **options: Any) -> str:
    with pytest.raises(AnswerError) as error:
        refine(chat, **options)
    told = str(error.value)
    assert KEY not in told
    assert len(told) < 3000
    return told


def completion(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()


@pytest.mark.parametrize("status", [200, 401, 404, 500])
def test_an_answer_without_an_end_is_left(chat: ChatServer, status: int):
    chat.default = Flood(b'{"choices": [' * 5000, status)
    assert f"answered {status} with more than 4 MiB" in fail(chat, retries=3)
    (request,) = chat.requests  # once is enough
    for _ in range(600):
        if request.abandoned:
            break
        threading.Event().wait(0.05)
    assert request.abandoned
    assert request.sent < 32 * LONGEST_BODY, "the server was listened to for long"


def test_a_list_of_models_without_an_end():
    with ChatServer(Failure(404), listing=Flood(b" " * 65536)) as chat:
        assert "no OpenAI-compatible endpoint" in fail(chat)


def packed(wbits: int, size: int, body: bytes = b"") -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    block = b" " * 2**20
    return b"".join([packer.compress(body), *(packer.compress(block) for _ in range(size >> 20)), packer.flush()])


def test_a_small_answer_that_unpacks_to_a_large_one(chat: ChatServer):
    chat.default = Raw(packed(31, 2**28, completion(ANSWER)), headers={"Content-Encoding": "gzip"})
    tracemalloc.start()
    try:
        assert "more than 4 MiB" in fail(chat)
        assert tracemalloc.get_traced_memory()[1] < 16 * LONGEST_BODY
    finally:
        tracemalloc.stop()


def test_servers_are_asked_for_plain_answers_and_gzip_is_read_all_the_same(chat: ChatServer):
    chat.script(Raw(gzip.compress(completion(ANSWER)), headers={"Content-Encoding": "gzip"}))
    assert refine(chat) == REFINED
    assert chat.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("packing", ["br", "zstd", "deflate", "gzip, gzip", "compress", "x" * 5000])
def test_another_packing_is_refused_in_words(chat: ChatServer, packing: str):
    chat.default = Raw(packed(15, 2**20), headers={"Content-Encoding": packing})
    assert "sends its answer packed" in fail(chat)


def test_gzip_that_is_none(chat: ChatServer):
    chat.script(Raw(b"not packed", headers={"Content-Encoding": "gzip"}))
    assert refine(chat, retries=1) == REFINED


@pytest.mark.parametrize("charset", ["zlib_codec", "bz2", "punycode", "idna", "utf-7", "rot13", "undefined", "utf-16"])
@pytest.mark.parametrize("status", [200, 400])
def test_the_answer_does_not_choose_how_it_is_decoded(chat: ChatServer, charset: str, status: int):
    body = completion(ANSWER) if status == 200 else b'{"error": "' + b"a-" * 10**6 + b'"}'
    chat.default = Raw(body, f"application/json; charset={charset}", status=status)
    assert refine(chat) == REFINED if status == 200 else "answered 400: a-a-" in fail(chat)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_named_and_not_followed(chat: ChatServer, status: int):
    with ChatServer(ANSWER) as inside:
        target = f"{inside.url}/chat/completions"
        chat.default = Raw(b"moved", headers={"Location": target}, status=status)
        told = fail(chat, retries=2)
        assert f"answered {status} and points to {target}" in told
        assert "Redirects are not followed" in told
        assert inside.requests == []
    assert len(chat.requests) == 1


def test_a_redirect_to_nowhere(chat: ChatServer):
    chat.default = Raw(b"", status=302)
    assert "points to nowhere" in fail(chat)
    chat.default = Raw(b"", headers={"Location": f"http://x/?key={KEY}&" + "a" * 9000}, status=302)
    assert "http://x/?key=[key]&a" in fail(chat)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10**6,
        b'{"choices":' * 10**5,
        b'{"choices": [{"message": {"content": ' + b"[" * 500 + b"]" * 500 + b"}}]}",
        b'{"choices": [{"message": {"content": "\\ud800"}}]}',
        b"1" * 10**6,
        b"\xff\xfe\x00" * 1000,
        b"\xef\xbb\xbf",
        b"\x00" * LONGEST_BODY,
        b"{}," * (LONGEST_BODY // 3),
    ],
    ids=lambda body: repr(body[:24]),
)
@pytest.mark.parametrize("status", [200, 400])
def test_bodies_that_are_no_answers(chat: ChatServer, body: bytes, status: int):
    chat.default = Raw(body, status=status)
    assert fail(chat)


def test_many_names_of_models():
    names = json.dumps({"data": [{"id": "\x1b[31m" + "m" * 10_000} for _ in range(300)]}).encode()
    with ChatServer(Failure(404), listing=Raw(names)) as chat:
        told = fail(chat)
    assert "It lists: [31mmmm" in told
    assert "\x1b" not in told


def echoes(key: str) -> dict[str, str]:
    spread = "\\n".join(key[start : start + 4] for start in range(0, len(key), 4))
    return {
        "address": "".join(f"%{ord(char):02X}" for char in key),
        "base64": base64.b64encode(f"Bearer {key}".encode()).decode(),
        "lines": spread,
    }


@pytest.mark.parametrize("name", echoes(KEY))
@pytest.mark.parametrize("status", [200, 401, 500])
def test_an_echo_in_disguise(chat: ChatServer, caplog: pytest.LogCaptureFixture, name: str, status: int):
    echo = echoes(KEY)[name]
    text = f'{{"prompt": "a door {echo}", "error": {{"message": "you sent {echo}"}}}}'
    body = completion("X").replace(b'"X"', json.dumps(text).encode()) if status == 200 else text.encode()
    chat.default = Raw(gzip.compress(body), headers={"Content-Encoding": "gzip"}, status=status)
    told = str(refine(chat)) if status == 200 else fail(chat, retries=1)
    assert "[key]" in told
    for spelling in (KEY[:8], echo[4:16]):
        assert spelling not in told.replace("Bearer", "")
        assert spelling not in caplog.text.replace("Bearer", "")


def test_an_echo_in_the_headers_is_not_logged(chat: ChatServer, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)

    def reply(request: ChatRequest) -> Raw:
        echo = request.headers["authorization"]
        return Raw(completion(ANSWER), headers={"X-Echo": echo, "X-Request-Id": echo, "Set-Cookie": f"a={echo}"})

    chat.default = reply
    assert refine(chat) == REFINED
    assert caplog.records
    assert KEY not in caplog.text


def test_reading_an_answer_does_not_hold_up_the_others(chat: ChatServer):
    """Each is read while the other is: neither has the event loop for itself."""
    together = threading.Barrier(2, timeout=30)

    def read(text: str) -> str:
        together.wait()
        return text

    asked = Question("Say something.", "Now.", read=read)
    found = ChatEndpoint(chat.url, "tiny-vlm").answers([asked, asked], lambda: None, in_flight=2)
    assert [answer.result() for answer in found] == [ANSWER, ANSWER]
