"""Attempts to have a key sent elsewhere, or to read it in what a server sends back."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import random
import socket
import threading
from collections.abc import Iterator
from urllib.parse import quote

import pytest
import torch

from realisr.services.vlm.chat.addresses import ALLOWED_KEYS, HOME_OF_KEY, NO_KEY, find_key, normalize_base_url
from realisr.services.vlm.chat.endpoint import ChatEndpoint
from realisr.services.vlm.chat.secrets import redact
from realisr.services.vlm.protocol import AnswerError, SetupError, ask
from realisr.services.vlm.questions import caption_question

openai = pytest.importorskip("openai")

pytestmark = pytest.mark.timeout(120)

KEY = "sk-test-5f0c6b1e77/aa+n0t"
NAME = "OPENAI_API_KEY"


def key_for(address: str, name: str = NAME, **environment: str) -> str:
    """What goes to an address as it is typed; NO_KEY also for one that is refused."""
    try:
        return find_key(normalize_base_url(address), name, {name: KEY, **environment})
    except SetupError:
        return NO_KEY


@pytest.mark.parametrize(
    "address",
    [
        "http://evil.localhost:8000/v1",
        "http://api.openai.com.localhost/v1",
        "http://localhost.:8000/v1",
        "http://localhost.evil.example/v1",
        "http://evil.example[::1]/v1",
        "http://[::1]evil.example/v1",
        "http://[::1].evil.example/v1",
        "http://[::1]@evil.example/v1",
        "http://localhost@evil.example/v1",
        "http://localhost:80@evil.example/v1",
        "http://evil.example#@localhost/v1",
        "http://evil.example?@localhost/v1",
        "http://localhost\\@evil.example/v1",
        "http://localhost\\.evil.example/v1",
        "http://localhost%2eevil.example/v1",
        "http://localhost%00.evil.example/v1",
        "http://local\thost.evil.example/v1",
        "http://localhost,evil.example/v1",
        "http://2130706433/v1",
        "http://0x7f000001/v1",
        "http://0177.0.0.1/v1",
        "http://127.1/v1",
        "http://0.0.0.0/v1",
        "http://[::]/v1",
        "http://[fe80::1%25lo]/v1",
        "http://[::ffff:10.0.0.1]/v1",
        "http://１２７.0.0.1/v1",
        "http://ｌocalhost/v1",
        "http://api.openai.com/v1",
        "https://api.openai.com.evil.example/v1",
        "https://api.openai.com@evil.example/v1",
        "https://evil.example/api.openai.com/v1",
        "https://evil.example\\api.openai.com/v1",
        "//localhost/v1",
        "localhost.localhost:80",
    ],
)
def test_what_only_looks_like_this_machine_or_the_service_gets_no_key(address: str):
    assert key_for(address) == NO_KEY


@pytest.mark.parametrize(
    "address", ["http://evil.example[::1]/v1", "http://[::1]x/v1", "http://a,b/v1", "http://a b/v1"]
)
def test_odd_hosts_are_refused_in_words(address: str):
    with pytest.raises(SetupError, match="base_url"):
        normalize_base_url(address)


@pytest.mark.parametrize("address", ["http://localhost:1/v1", "http://127.0.0.1/v1", "http://127.9.8.7:80", "[::1]:80"])
def test_this_machine_gets_it(address: str):
    assert key_for(address) == KEY


@pytest.mark.parametrize("seed", range(3))
def test_the_client_goes_where_the_key_was_meant_for(seed: int):
    """Both read the same address, each in its own way."""
    url = type(openai.AsyncOpenAI(api_key="x", base_url="http://a/").base_url)
    draw = random.Random(seed)
    parts = ["localhost", "127.0.0.1", "[::1]", "api.openai.com", "evil.example", ".", "@", ":", "80", "/", "\\", "#"]
    parts += ["?", "%", "[", "]", "//", "v1", "\t", "ｌ", "%2f", ";", ",", "0x7f.1", "::1"]
    sent = 0
    for _ in range(20_000):
        address = draw.choice(["http://", "https://", "", "HTTP://", "http:/"])
        address += "".join(draw.choice(parts) for _ in range(draw.randrange(1, 6)))
        if key_for(address) == NO_KEY:
            continue
        sent += 1
        seen = url(normalize_base_url(address))
        assert seen.userinfo == b""
        local = seen.host in ("localhost", "::1") or seen.host.startswith("127.")
        assert local or (seen.scheme, seen.host) == ("https", HOME_OF_KEY[NAME])
    assert sent > 50


SECRETS = ("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "HF_TOKEN", "DJANGO_SECRET_KEY", "MY_API_KEY")


@pytest.mark.parametrize("name", SECRETS)
def test_a_workflow_does_not_choose_which_secret_goes_to_a_port(name: str):
    address = "http://localhost:8000/v1"
    assert key_for(address, name) == NO_KEY
    assert key_for(address, name, **{ALLOWED_KEYS: f"OTHER_KEY, {name} ,"}) == KEY
    assert key_for(address, name, **{ALLOWED_KEYS: f"X{name},{name}X,*"}) == NO_KEY
    assert key_for("http://192.168.0.7/v1", name, **{ALLOWED_KEYS: name}) == NO_KEY


@pytest.mark.parametrize("name", [*HOME_OF_KEY, "VLLM_API_KEY", "OLLAMA_API_KEY"])
def test_saved_workflows_with_a_known_name_go_on_working(name: str):
    assert key_for("http://localhost:8000/v1", name) == KEY


def test_the_hint_says_how_to_allow_one():
    from realisr.services.vlm.chat.addresses import key_hint

    hint = key_hint("http://localhost:8000/v1", "MY_API_KEY", {"MY_API_KEY": KEY})
    assert f"set {ALLOWED_KEYS}=MY_API_KEY in the environment" in hint


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """A proxy of the environment that writes down what reaches it, and answers nothing."""
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                seen.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=listen, daemon=True).start()
    address = f"http://me:hunter2secret@127.0.0.1:{listener.getsockname()[1]}"
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, address)
    for name in ("NO_PROXY", "no_proxy", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(NAME, KEY)
    yield seen
    listener.close()


def failure(base_url: str) -> str:
    question = caption_question(torch.zeros(4, 4, 3), "tags")
    endpoint = ChatEndpoint(base_url, "m", timeout=20.0, retries=0)
    with pytest.raises(AnswerError) as error:
        ask(endpoint, question, lambda: None)
    assert KEY not in str(error.value)
    assert "hunter2secret" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("base_url", ["http://evil.localhost:8000/v1", "http://api.openai.com/v1", "http://127.1/v1"])
def test_what_leaves_this_machine_without_a_key(proxy: list[bytes], base_url: str):
    """Through a proxy, so that no resolver has a say."""
    failure(base_url)
    assert len(proxy) == 1
    assert b"POST http://" in proxy[0]
    assert f"bearer {NO_KEY}" in proxy[0].decode().lower()
    assert KEY.encode() not in proxy[0]


def test_a_proxy_sees_no_key_of_a_service(proxy: list[bytes]):
    failure("https://api.openai.com/v1")
    assert [request.split(b"\r\n")[0] for request in proxy] == [b"CONNECT api.openai.com:443 HTTP/1.1"]
    assert KEY.encode() not in b"".join(proxy)


def in_lines(text: str, width: int, end: str) -> str:
    return end.join(text[start : start + width] for start in range(0, len(text), width))


ECHOES = {
    "as it is": KEY,
    "in an address": quote(KEY, safe=""),
    "in an address, every character": "".join(f"%{ord(char):02x}" for char in KEY),
    "in an address, twice": quote(quote(KEY, safe=""), safe=""),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 of a header": base64.b64encode(f"Authorization: Bearer {KEY}\n".encode()).decode(),
    "base64 of a pair": base64.b64encode(f"user:{KEY}".encode()).decode(),
    "base64 for addresses": base64.urlsafe_b64encode(f"u:{KEY}>>>".encode()).decode(),
    "base64 in lines": in_lines(base64.b64encode(KEY.encode()).decode(), 8, "\n"),
    "hexadecimal digits": binascii.hexlify(KEY.encode()).decode(),
    "in lines": in_lines(KEY, 5, "\r\n  "),
    "in lines of JSON": in_lines(KEY, 3, "\\n"),
    "in lines of HTML": in_lines(KEY, 4, "\u200b"),
    "JSON": "".join(f"\\u{ord(char):04X}" for char in KEY),
    "JSON in JSON": "".join(f"\\\\u{ord(char):04x}" for char in KEY),
    "slashes of JSON": KEY.replace("/", "\\/"),
    "bytes of Python": "".join(f"\\x{ord(char):02x}" for char in KEY),
    "HTML": "".join(f"&#{ord(char)};" for char in KEY),
    "HTML, hexadecimal": "".join(f"&#x{ord(char):x};" for char in KEY),
    "capitals": KEY.upper(),
}


@pytest.mark.parametrize("name", ECHOES)
def test_an_echo_is_taken_out(name: str):
    told = redact(f"you sent <{ECHOES[name]}> to us", KEY)
    head, _, tail = told.partition("[key]")
    assert head.startswith("you sent <")
    assert tail.endswith("> to us")
    rest = told.removeprefix("you sent <").removesuffix("> to us").replace("[key]", "")
    if "base64 " not in name:  # which holds more than the key: a header's name, a user's
        assert len(rest) <= 4
    inside = [base64.b64encode(bytes(offset) + KEY.encode()).decode() for offset in range(3)]
    for some in (
        KEY[:6],
        KEY[-6:],
        KEY[8:16],
        *(digits[4:12] for digits in inside),
        *(digits[-12:-4] for digits in inside),
    ):
        assert some not in rest


def test_json_stays_json():
    for spelling in (KEY, KEY.replace("/", "\\/"), "".join(f"\\u{ord(char):04x}" for char in KEY)):
        for before in ("", "\\\\", "a\\n", "\\\\\\\\"):
            text = redact(f'{{"message": "{before}{spelling} and {spelling}"}}', KEY)
            assert json.loads(text)["message"].count("[key]") == 2


def test_json_stays_json_where_the_first_character_is_escaped():
    text = redact(r'{"message": "\/a+b/c0123456789"}', "/a+b/c0123456789")
    assert json.loads(text) == {"message": "[key]"}


def test_nothing_else_is_taken_out():
    text = json.dumps({"prompt": "a red door, 100% wood &#38; paint %20 \\u002d\n", "list": ["sk-", "test", KEY[:-1]]})
    assert redact(text, KEY) == text


@pytest.mark.parametrize(
    "part", ["\\", "\\u0073", "%25", "%", "25", " ", "a ", "s\\", "\\n", "&#", "&#0", KEY, KEY[:-1], "s k-", "s"]
)
def test_the_search_takes_time_in_proportion(part: str):
    text = part * (4 * 2**20 // len(part))
    assert (redact(text, KEY) == text) == (part != KEY)


@pytest.mark.parametrize("seed", range(2))
def test_any_mixture_of_escapes(seed: int):
    draw = random.Random(seed)
    ways = [str, lambda c: f"\\u{ord(c):04x}", lambda c: f"%{ord(c):02X}", lambda c: f"%25{ord(c):02x}"]
    ways += [
        lambda c: f"&#{ord(c)};",
        lambda c: f"\\{c}" if c not in "nrtux" else c,
        lambda c: f"{c}\\n",
        lambda c: f" {c}",
    ]
    for _ in range(500):
        told = redact("<" + "".join(draw.choice(ways)(char) for char in KEY) + ">", KEY)
        assert "[key]" in told
        assert len(told) < 16


def test_no_key_is_found_in_pieces_of_others():
    names = itertools.product(("sk-test-", "sk-test-5f0c"), ("", "zz"))
    assert all(redact(a + b, KEY) == a + b for a, b in names)
