"""Where an endpoint is, and whether a key may go there.

A workflow is a file that people hand around, and it names the address that pictures and a key are sent to. So the
workflow alone must not be able to send a key anywhere new: a key goes to the service it belongs to, or to the address
that was set next to it in the environment. Keys of chat services, and those that the owner of the machine allows, may
also go to servers on this machine; other secrets of the environment may not, whatever a workflow calls for.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from ..protocol import SetupError

KEY_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*(?:KEY|TOKEN)")
"""Upper case, as such variables are, so that a key pasted in place of its name is refused."""

HOME_OF_KEY = {
    "OPENAI_API_KEY": "api.openai.com",
    "ANTHROPIC_API_KEY": "api.anthropic.com",
    "DASHSCOPE_API_KEY": "dashscope.aliyuncs.com",
    "DEEPSEEK_API_KEY": "api.deepseek.com",
    "GEMINI_API_KEY": "generativelanguage.googleapis.com",
    "GROQ_API_KEY": "api.groq.com",
    "MISTRAL_API_KEY": "api.mistral.ai",
    "OPENROUTER_API_KEY": "openrouter.ai",
    "TOGETHER_API_KEY": "api.together.xyz",
    "XAI_API_KEY": "api.x.ai",
}

LOCAL_KEYS = frozenset({"LITELLM_API_KEY", "LLAMA_API_KEY", "LM_API_TOKEN", "OLLAMA_API_KEY", "VLLM_API_KEY"})
"""Of servers that run on one's own machine, by the names their documentation gives them."""

ALLOWED_KEYS = "REALISR_KEY_VARIABLES"
"""Variable of the environment: names of further keys that may go to this machine, with commas between them."""

NO_KEY = "no-key"
"""Sent where there is none to send: the client wants something, servers without keys do not look at it."""

LONGEST_ADDRESS = 2000
NETLOC = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::[0-9]*)?")
"""A host and perhaps a port. Readers of addresses disagree about anything else, such as brackets behind a name."""


def normalize_base_url(text: str) -> str:
    """The base URL of an endpoint, as typed or pasted -> with scheme, with /v1, without the path of a method.

    "localhost:11434" -> "http://localhost:11434/v1". Raises SetupError for what is no address, and for one that
    carries a secret, which would end up in the workflow file; that address is not repeated in the message.
    """
    text = text.strip()
    if not text:
        raise SetupError("base_url is empty. Give the endpoint's address, such as http://localhost:11434/v1 (Ollama).")
    if len(text) > LONGEST_ADDRESS or not text.isprintable() or " " in text or "\\" in text:
        raise SetupError(
            "base_url is not an address: it is too long, or holds spaces, backslashes or control characters."
        )
    if "://" not in text:
        text = ("http://" if is_this_machine(text.partition("/")[0].rpartition(":")[0] or text) else "https://") + text
    parts = _split(text)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise SetupError(
            "base_url holds more than an address (a user name, a password, or something after ? or #). It is saved in "
            "the workflow, so it must not hold secrets: put the key into an environment variable and name that one."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SetupError(f"base_url {text!r} is not an http:// or https:// address, such as http://localhost:1234/v1.")
    if not NETLOC.fullmatch(parts.netloc):
        raise SetupError(
            f"base_url {text!r} names no host between // and the next /: a name, 192.168.0.7 or [::1], and perhaps a "
            "port after a colon."
        )
    path = re.sub(r"/(chat/)?completions$", "", parts.path.rstrip("/"))
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        _ = parts.port  # out of range or no number: raises
    except ValueError:
        raise SetupError("base_url is not an address: check its host and port.") from None
    return parts


def check_key_variable(name: str, base_url: str) -> None:
    """Raises SetupError for what cannot be the name of a key's environment variable, without repeating it.

    No name at all will do for a (normalised) address on this machine, whose servers rarely want a key.
    """
    if not name:
        if is_this_machine(urlsplit(base_url).hostname):
            return
        raise SetupError(
            f"key_variable is empty, and only a server on this machine needs no key. Name the environment variable "
            f"that holds the key for {base_url}, such as OPENAI_API_KEY."
        )
    if not KEY_VARIABLE.fullmatch(name):
        raise SetupError(
            "key_variable is not the name of a key's environment variable: capitals, digits and underscores, ending in "
            "KEY or TOKEN, such as OPENAI_API_KEY. If you pasted the key itself, clear the field: a workflow must not "
            "hold it, and what was saved with it should be considered known to others."
        )


def is_this_machine(host: str | None) -> bool:
    """Whether a host is called localhost or is an address of the loopback interface.

    Names that end in .localhost are not: the resolver decides where they lead, as it does for any other name.
    """
    host = (host or "").strip("[]").lower()
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def base_url_variable(key_variable: str) -> str:
    """Name of the variable that gives a key's own address: OPENAI_API_KEY -> OPENAI_BASE_URL."""
    return re.sub(r"_?(API_)?(KEY|TOKEN)$", "", key_variable) + "_BASE_URL"


def may_go_to_this_machine(key_variable: str, environment: Mapping[str, str]) -> bool:
    """Whether it is the key of a chat service, or one that the owner of the machine allows."""
    allowed = environment.get(ALLOWED_KEYS, "").split(",")
    return key_variable in HOME_OF_KEY or key_variable in LOCAL_KEYS or key_variable in map(str.strip, allowed)


def may_receive(base_url: str, key_variable: str, environment: Mapping[str, str]) -> bool:
    """Whether the key of this name belongs to this (normalised) address.

    To its service over https, to this machine, and to the address in its *_BASE_URL variable, as given there.
    """
    parts = urlsplit(base_url)
    if is_this_machine(parts.hostname) and may_go_to_this_machine(key_variable, environment):
        return True
    if parts.scheme == "https" and parts.hostname == HOME_OF_KEY.get(key_variable):
        return True
    named = environment.get(base_url_variable(key_variable), "")
    if not named:
        return False
    own = urlsplit(normalize_base_url(named))
    return (own.scheme, own.hostname, own.port) == (parts.scheme, parts.hostname, parts.port)


def find_key(base_url: str, key_variable: str, environment: Mapping[str, str] = os.environ) -> str:
    """The key to send to a (normalised) address; NO_KEY where none belongs there.

    Raises SetupError when the address is a service that wants this key and the variable is not set.
    """
    check_key_variable(key_variable, base_url)
    if not key_variable:
        return NO_KEY
    key = environment.get(key_variable, "").strip()
    if not may_receive(base_url, key_variable, environment):
        return NO_KEY
    if not key and not is_this_machine(urlsplit(base_url).hostname):
        raise SetupError(
            f"The environment variable {key_variable} is not set, and {base_url} wants a key. Set it before starting "
            f"ComfyUI (for example: export {key_variable}=...), never in the workflow."
        )
    if not key.isascii() or not key.isprintable():
        raise SetupError(f"The environment variable {key_variable} holds characters no key has. Copy the key again.")
    return key or NO_KEY


def key_hint(base_url: str, key_variable: str, environment: Mapping[str, str] = os.environ) -> str:
    """What to do when the address wants a key, or another one."""
    if not key_variable:
        return "This server wants a key: name the environment variable that holds it in key_variable."
    if not environment.get(key_variable, "").strip():
        return f"Set the environment variable {key_variable} before starting ComfyUI, or name another in key_variable."
    if not may_receive(base_url, key_variable, environment):
        allow = f"{base_url_variable(key_variable)}={base_url}"
        if is_this_machine(urlsplit(base_url).hostname):
            allow = f"{ALLOWED_KEYS}={key_variable}"
        return (
            f"{key_variable} was not sent, because a workflow alone must not send a key to a new address. If it is for "
            f"{base_url}, set {allow} in the environment, before starting ComfyUI."
        )
    return f"Check the key in {key_variable}: it may be mistyped, expired, or of another service."
