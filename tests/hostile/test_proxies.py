"""Proxies of the environment: what they see of a key, and what is said of those that are none."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator

import pytest
import torch

from harness.chat_server import ChatServer
from realisr.services.vlm.chat.addresses import NO_KEY, find_key, normalize_base_url
from realisr.services.vlm.chat.endpoint import ChatEndpoint
from realisr.services.vlm.protocol import AnswerError, SetupError, ask
from realisr.services.vlm.questions import caption_question

pytest.importorskip("openai")

pytestmark = pytest.mark.timeout(120)

KEY, PASSWORD = "sk-test-5f0c6b1e77/aa+n0t", "hunter2secret"
ANSWER = json.dumps({"prompt": "a red door"})
VARIABLES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "NO_PROXY", "no_proxy", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask_for_tags(base_url: str) -> object:
    endpoint = ChatEndpoint(base_url, "m", timeout=20.0, retries=0)
    return ask(endpoint, caption_question(torch.zeros(4, 4, 3), "tags"), lambda: None)


class Proxy:
    """Writes down what reaches it, and answers with an error."""

    def __enter__(self) -> Proxy:
        self.seen: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://me:{PASSWORD}@127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self.seen.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as running:
        yield running


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_comes_between_this_machine_and_itself(proxy, monkeypatch, variable: str, host: str):
    """The key would travel to it in clear."""
    monkeypatch.setenv(variable, proxy.address)
    with ChatServer(ANSWER) as chat:
        assert ask_for_tags(chat.url.replace("127.0.0.1", host))
    assert chat.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert proxy.seen == []


def test_a_proxy_of_https_sees_no_key_and_its_password_is_told_to_nobody(proxy, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("ALL_PROXY", proxy.address)
    with pytest.raises(AnswerError) as error:
        ask_for_tags("https://api.openai.com/v1")
    assert [request.split(b"\r\n")[0] for request in proxy.seen] == [b"CONNECT api.openai.com:443 HTTP/1.1"]
    assert KEY.encode() not in b"".join(proxy.seen)
    secret = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    for told in (str(error.value), caplog.text):
        assert PASSWORD not in told
        assert secret not in told


def test_where_no_proxy_is_asked_for_there_is_none(proxy, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", proxy.address)
    monkeypatch.setenv("NO_PROXY", "nowhere.invalid")
    with pytest.raises(AnswerError, match="cannot be reached"):
        ask_for_tags("http://nowhere.invalid/v1")
    assert proxy.seen == []


@pytest.mark.parametrize(
    "address",
    [
        f"ftp://me:{PASSWORD}@127.0.0.1:9",
        f"http://me:{PASSWORD}@127.0.0.1:port",
        f"http://127.0.0.1:{PASSWORD}",
        f"http://{PASSWORD}\x7f/",
        f"socks9://{PASSWORD}:1",
    ],
)
def test_a_proxy_that_is_none_is_named_and_not_quoted(monkeypatch, address: str):
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(
        SetupError, match=r"A proxy in the environment \(HTTP_PROXY, HTTPS_PROXY or ALL_PROXY\)"
    ) as error:
        ask_for_tags("https://api.openai.com/v1")
    assert PASSWORD not in str(error.value)


def test_a_socks_proxy_asks_for_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", f"socks5://me:{PASSWORD}@127.0.0.1:9")
    with pytest.raises(SetupError, match=r'pip install "httpx\[socks\]"') as error:
        ask_for_tags("https://api.openai.com/v1")
    assert PASSWORD not in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://chat.example/v1",
        "http://chat.example:443/v1",
        "https://chat.example:80/v1",
        "https://chat.example.evil/v1",
        "https://chat.example@evil.example/v1",
        "https://[::ffff:127.0.0.1]:443/v1",
        "https://3221225985/v1",
    ],
)
def test_a_key_for_an_address_over_https_goes_to_that_one_alone(address: str):
    """Above all not to the same host in clear."""
    environment = {"MY_API_KEY": KEY, "MY_BASE_URL": "https://chat.example/v1"}
    assert find_key(normalize_base_url("https://chat.example/v1"), "MY_API_KEY", environment) == KEY
    try:
        assert find_key(normalize_base_url(address), "MY_API_KEY", environment) == NO_KEY
    except SetupError:
        assert "@" in address
