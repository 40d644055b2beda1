"""Where keys may go, and what is an address."""

from __future__ import annotations

import json

import pytest

from realisr.services.vlm.chat.addresses import (
    NO_KEY,
    base_url_variable,
    check_key_variable,
    find_key,
    key_hint,
    normalize_base_url,
)
from realisr.services.vlm.chat.secrets import redact
from realisr.services.vlm.protocol import SetupError

KEY = "sk-test-0123456789"
OPENAI = "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        ("https://api.openai.com/v1", OPENAI),
        (" https://api.openai.com/v1/ ", OPENAI),
        ("api.openai.com", OPENAI),
        ("https://api.openai.com/v1/chat/completions", OPENAI),
        ("localhost:11434", "http://localhost:11434/v1"),
        ("localhost", "http://localhost/v1"),
        ("127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://[::1]:8080", "http://[::1]:8080/v1"),
        ("[::1]:8080", "http://[::1]:8080/v1"),
        ("http://192.168.0.7:1234", "http://192.168.0.7:1234/v1"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1"),
        (
            "https://generativelanguage.googleapis.com/v1beta/openai/",
            "https://generativelanguage.googleapis.com/v1beta/openai",
        ),
    ],
)
def test_an_address_as_it_is_typed_or_pasted(typed, address):
    assert normalize_base_url(typed) == address
    assert normalize_base_url(address) == address


@pytest.mark.parametrize(
    "typed", ["", "  ", "ftp://host/v1", "file:///x", "http://", "http://host:99999", "http://h:x"]
)
def test_what_is_no_address(typed):
    with pytest.raises(SetupError, match="base_url"):
        normalize_base_url(typed)


@pytest.mark.parametrize("typed", [f"https://me:{KEY}@host/v1", f"https://host/v1?api_key={KEY}", f"host/v1#{KEY}"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(typed):
    with pytest.raises(SetupError, match="must not hold secrets") as error:
        normalize_base_url(typed)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("name", [KEY, "gsk_abcdefgh1234", " ", "OPENAI API KEY", "PATH", "HOME", "AWS_SECRET"])
def test_what_is_no_name_of_a_key_is_refused_and_not_repeated(name):
    with pytest.raises(SetupError, match="key_variable is not the name") as error:
        check_key_variable(name, OPENAI)
    assert name == " " or name not in str(error.value).replace("OPENAI_API_KEY", "")


@pytest.mark.parametrize("address", ["localhost:11434", "http://127.0.0.1:8000", "http://[::1]:1234/v1"])
def test_this_machines_servers_need_no_key_and_no_name_of_one(address):
    base_url = normalize_base_url(address)
    check_key_variable("", base_url)
    assert find_key(base_url, "", {"": KEY, "OPENAI_API_KEY": KEY}) == NO_KEY
    assert "name the environment variable" in key_hint(base_url, "", {})


@pytest.mark.parametrize("address", [OPENAI, "http://192.168.0.7:8000/v1", "http://a.localhost:80/v1"])
def test_other_servers_need_the_name_of_a_key(address):
    with pytest.raises(SetupError, match="key_variable is empty"):
        check_key_variable("", address)


@pytest.mark.parametrize(
    ("address", "variable"),
    [
        (OPENAI, "OPENAI_API_KEY"),
        ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
        ("http://localhost:8000/v1", "OPENAI_API_KEY"),
        ("http://127.0.0.1:8000/v1", "VLLM_API_KEY"),
        ("http://[::1]:8000/v1", "LM_API_TOKEN"),
    ],
)
def test_a_key_goes_to_its_service_and_to_this_machine(address, variable):
    assert find_key(address, variable, {variable: f" {KEY}\n"}) == KEY


@pytest.mark.parametrize(
    ("address", "variable"),
    [
        ("https://elsewhere.example/v1", "OPENAI_API_KEY"),
        ("https://api.openai.com.example/v1", "OPENAI_API_KEY"),
        ("https://api.openai.com@elsewhere.example/v1".replace("api.openai.com@", ""), "OPENAI_API_KEY"),
        ("http://api.openai.com/v1", "OPENAI_API_KEY"),
        (OPENAI, "OPENROUTER_API_KEY"),
        ("http://192.168.0.7:8000/v1", "OPENAI_API_KEY"),
        ("http://localhost.example/v1", "OPENAI_API_KEY"),
    ],
)
def test_a_workflow_alone_sends_no_key_anywhere_else(address, variable):
    assert find_key(address, variable, {variable: KEY}) == NO_KEY
    hint = key_hint(address, variable, {variable: KEY})
    assert f"{base_url_variable(variable)}={address}" in hint
    assert KEY not in hint


def test_the_environment_can_name_another_address():
    environment = {"MY_API_KEY": KEY, "MY_BASE_URL": "http://192.168.0.7:8000"}
    assert find_key("http://192.168.0.7:8000/v1", "MY_API_KEY", environment) == KEY
    assert find_key("http://192.168.0.7:8001/v1", "MY_API_KEY", environment) == NO_KEY
    assert find_key("https://192.168.0.7:8000/v1", "MY_API_KEY", environment) == NO_KEY
    assert base_url_variable("OPENAI_API_KEY") == "OPENAI_BASE_URL"
    assert base_url_variable("HF_TOKEN") == "HF_BASE_URL"


def test_a_service_without_its_key_says_which_variable_to_set():
    with pytest.raises(SetupError, match=r"OPENAI_API_KEY is not set.*before starting ComfyUI"):
        find_key(OPENAI, "OPENAI_API_KEY", {})
    assert find_key("http://localhost:11434/v1", "OPENAI_API_KEY", {}) == NO_KEY


def test_a_key_with_a_line_break_inside_is_refused():
    with pytest.raises(SetupError, match="OPENAI_API_KEY holds characters") as error:
        find_key(OPENAI, "OPENAI_API_KEY", {"OPENAI_API_KEY": f"{KEY}\nmore"})
    assert KEY not in str(error.value)


def test_hints():
    assert "Set the environment variable OPENAI_API_KEY" in key_hint(OPENAI, "OPENAI_API_KEY", {})
    assert "mistyped" in key_hint(OPENAI, "OPENAI_API_KEY", {"OPENAI_API_KEY": KEY})


def test_a_key_is_taken_out_of_texts():
    assert redact(f"Bearer {KEY}, {KEY}.", KEY) == "Bearer [key], [key]."
    assert redact("nothing", NO_KEY) == "nothing"
    assert redact("a monkey", "key") == "a monkey"


def test_the_key_is_taken_out_of_json_however_it_is_escaped():
    key = "sk-a/b+c=0123456789"
    plain = json.dumps({"message": f"Bearer {key}"})
    spellings = [plain, plain.replace("/", "\\/"), plain.replace("-", "\\u002D").replace("+", "\\u002b")]
    spellings.append(json.dumps({"body": spellings[1]}))
    for text in spellings:
        assert key not in text or text == plain
        assert "0123456789" not in redact(text, key)
        assert "[key]" in redact(text, key)
    assert json.loads(redact(spellings[2], key)) == {"message": "Bearer [key]"}
