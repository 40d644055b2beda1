"""The chat-completions endpoint of the harness, driven by the `openai` client and by hand."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from PIL import Image

from harness.chat_server import Answer, ChatServer, Drop, Failure, Hang, Raw
from harness.waiting import HANG, wait_until

openai = pytest.importorskip("openai")


def client(chat: ChatServer, key: str = "sk-any", **options: Any):
    return openai.OpenAI(base_url=chat.url, api_key=key, max_retries=0, timeout=HANG, **options)


def ask(chat: ChatServer, content: Any = "hello", key: str = "sk-any", **options: Any):
    messages = [{"role": "user", "content": content}]
    return client(chat, key).chat.completions.create(model="m", messages=messages, **options)


def data_url(kind: str = "PNG", media_type: str = "image/png") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (250, 20, 30)).save(buffer, kind)
    return f"data:{media_type};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture(url: str, **options: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": url, **options}}]


def post(chat: ChatServer, content: bytes) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"{chat.url}/chat/completions", content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=HANG) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_answers_in_the_order_of_the_script_and_records_what_was_asked():
    with ChatServer(default="last") as chat:
        chat.script("first", lambda request: f"you said {request.texts[-1]}", Answer(None, "length"))
        answers = [ask(chat, text).choices[0] for text in ("a", "b", "c", "d")]
        assert [answer.message.content for answer in answers] == ["first", "you said b", None, "last"]
        assert [answer.finish_reason for answer in answers] == ["stop", "stop", "length", "stop"]
        assert [request.texts for request in chat.requests] == [["a"], ["b"], ["c"], ["d"]]
        assert chat.requests[0].headers["authorization"] == "Bearer sk-any"


def test_pictures_are_decoded():
    with ChatServer(default="ok") as chat:
        ask(chat, picture(data_url(), detail="low"))
        (image,) = chat.requests[0].images
        assert (image.size, image.getpixel((2, 2))) == ((6, 4), (250, 20, 30))


def test_without_a_script_it_says_so():
    with ChatServer() as chat, pytest.raises(openai.InternalServerError, match="no reply is scripted"):
        ask(chat)


def test_lists_its_models_and_knows_no_other():
    with ChatServer(default="ok", models=("seer",)) as chat:
        assert [model.id for model in client(chat).models.list()] == ["seer"]
        with pytest.raises(openai.NotFoundError, match="`m` does not exist"):
            ask(chat)


def test_the_wrong_key_is_refused():
    with ChatServer(default="ok", api_key="sk-right") as chat:
        assert ask(chat, key="sk-right").choices[0].message.content == "ok"
        with pytest.raises(openai.AuthenticationError):
            ask(chat, key="sk-wrong")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"temperature": 3.0}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"top_k": 4}}, "Unrecognized request arguments: top_k"),
        ({"stream": True}, "does not stream"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "json_schema.name"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "a",
                        "strict": True,
                        "schema": {"type": "object", "properties": {"b": {}}, "required": []},
                    },
                }
            },
            "additionalProperties",
        ),
        ({"content": picture("https://example.com/a.png")}, "Only data URLs"),
        ({"content": picture(data_url(), detail="fine")}, "image detail"),
        ({"content": picture(data_url("PNG", "image/jpeg"))}, "PNG, not image/jpeg"),
        ({"content": picture("data:image/png;base64,AAAA")}, "unsupported image"),
        ({"content": [{"type": "picture"}]}, "content part type"),
    ],
)
def test_what_the_protocol_does_not_allow_is_refused(options: dict[str, Any], complaint: str):
    with ChatServer(default="ok") as chat:
        with pytest.raises(openai.BadRequestError, match=complaint):
            ask(chat, **options)
        assert complaint in chat.requests[0].refused


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"model": "m"}', b'{"model": "m", "messages": [{"role": "me"}]}'])
def test_a_malformed_body_is_refused(content: bytes):
    with ChatServer(default="ok") as chat:
        status, body = post(chat, content)
        assert (status, body["error"]["type"]) == (400, "invalid_request_error")


def test_an_endpoint_without_structured_output():
    with ChatServer(default="ok", takes_response_format=False) as chat:
        with pytest.raises(openai.BadRequestError, match="response_format"):
            ask(chat, response_format={"type": "json_object"})
        assert ask(chat).choices[0].message.content == "ok"


def test_failures_and_nonsense_arrive_as_scripted():
    with ChatServer() as chat:
        chat.script(
            Failure(429, "slow down", retry_after=1.5),
            Failure(502, body=b"<html>bad gateway</html>"),
            Failure(403, echo_authorization=True),
            Raw(b'{"choices": ['),
            Drop(b"HTTP/1.1 2"),
        )
        with pytest.raises(openai.RateLimitError, match="slow down") as limited:
            ask(chat)
        assert limited.value.response.headers["retry-after"] == "1.5"
        with pytest.raises(openai.InternalServerError) as broken:
            ask(chat)
        assert (broken.value.status_code, broken.value.response.text) == (502, "<html>bad gateway</html>")
        with pytest.raises(openai.PermissionDeniedError, match="Bearer sk-any"):
            ask(chat)
        with pytest.raises(json.JSONDecodeError):
            ask(chat)
        with pytest.raises(openai.APIConnectionError):
            ask(chat)


def test_delays_and_silence():
    with ChatServer() as chat:
        chat.script(Answer("late", delay=0.2), Hang())
        start = time.monotonic()
        assert ask(chat).choices[0].message.content == "late"
        assert time.monotonic() - start >= 0.2
        with pytest.raises(openai.APITimeoutError):
            client(chat).with_options(timeout=0.2).chat.completions.create(
                model="m", messages=[{"role": "user", "content": "a"}]
            )
        wait_until(lambda: len(chat.requests) > 1 and chat.requests[1].abandoned)


def test_closing_releases_a_hanging_connection():
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "a"}]}).encode()
    with ChatServer(default=Hang()) as chat:
        port = int(chat.url.rsplit(":")[-1].split("/")[0])
        connection = socket.create_connection(("127.0.0.1", port), timeout=HANG)
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        wait_until(lambda: chat.requests)
    assert connection.recv(1) == b""
    connection.close()
