"""Answers that were written to cost time or to break their reader. Each is as long as an answer may be.

Nothing here measures speed: what takes time in proportion to the length ends within seconds, and what starts over at
each mark takes hours and runs into the time-out.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest

from realisr.services.vlm.answers import MAX_DEPTH, MAX_LENGTH, MAX_STARTS, excerpt, parse_json, read_fields
from realisr.services.vlm.chat import wire
from realisr.services.vlm.protocol import AnswerError, UnusableAnswer

pytestmark = pytest.mark.timeout(120)

FIELDS = ("prompt", "changes", "reason")


def filled(part: str, before: str = "", after: str = "") -> str:
    """As many of `part` as an answer has room for."""
    return before + part * ((MAX_LENGTH - len(before) - len(after)) // len(part)) + after


LONG = {
    "thoughts without an end": filled("<think>"),
    "ends of thoughts": filled("</think>"),
    "thoughts of two kinds": filled("<think></reasoning>", "<think>"),
    "braces": filled("{"),
    "braces and quotes": filled('{"'),
    "objects without an end": filled('{"a":'),
    "objects that break off": filled('{"a":1,"b":"', after="x"),
    "a text without an end inside many objects": filled("x", '{"":' * 900 + '"'),
    "a list without an end inside many objects": filled("0,", '{"a":[' * 60),
    "an empty list inside lists": filled("[", '{"prompt":'),
    "a number": filled("1", '{"prompt": ', "}"),
    "backslashes": filled("\\", '{"prompt":"'),
    "a fence and a word": filled("a", "```"),
    "a fence and spaces": filled(" ", "```", "x"),
    "fences": filled("```"),
    "line breaks": filled("\n", "a", "b"),
    "bullets": filled("\n* ", "a", "b"),
    "a label and stars": filled("*", "prompt", "x"),
    "labels": filled("\nprompt", "x"),
    "signs before a refusal": filled("-", after="sorry"),
    "characters that are not shown": filled("\u200b", after="a"),
}


def read(text: str) -> dict[str, str] | AnswerError:
    try:
        return read_fields(text, FIELDS)
    except AnswerError as error:
        return error


@pytest.mark.parametrize("name", LONG)
def test_a_long_answer_is_read_once(name: str):
    found = read(LONG[name])
    assert len(str(found)) < 400 if isinstance(found, AnswerError) else found["prompt"]


def test_an_answer_longer_than_any_that_was_asked_for():
    with pytest.raises(AnswerError, match=f"has {MAX_LENGTH + 1} characters"):
        read_fields("a" * (MAX_LENGTH + 1), FIELDS)


def test_the_answer_is_found_behind_stray_braces():
    stray = "{x} { y } {'z'} " * MAX_STARTS  # none of them can begin an object
    assert read_fields(stray + json.dumps({"prompt": "a door"}), FIELDS)["prompt"] == "a door"


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 100_000])
def test_lists_inside_lists(depth: int):
    with pytest.raises(UnusableAnswer, match="cannot be read"):
        read_fields('{"prompt":' + "[" * depth + '"a"' + "]" * depth + "}", FIELDS)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * depth + "]" * depth)


def test_lists_inside_lists_as_answers_have_them():
    assert read_fields('{"prompt": [["a", "b"], "c"]}', FIELDS)["prompt"] == "a; b; c"


def test_an_excerpt_looks_at_the_beginning_only():
    assert excerpt("\n" * MAX_LENGTH + "secret") == "…"
    assert excerpt("a  b" + " " * 1000) == "a b"


def odd_values(draw: random.Random, depth: int = 3) -> Any:
    """A JSON value of a random kind, with names of the protocol where they do not belong."""
    names = ["choices", "message", "content", "error", "code", "refusal", "data", "id", "prompt", "text", ""]
    kinds = [
        lambda: draw.choice([None, True, False, 0, -1, 10**30, 1e300, float("nan"), float("inf")]),
        lambda: draw.choice(["", "\x00", "\ud800", "{", "<think>", "a" * 2000, '{"prompt": 1}', "I'm sorry"]),
        lambda: [odd_values(draw, depth - 1) for _ in range(draw.randrange(4))],
        lambda: {draw.choice(names): odd_values(draw, depth - 1) for _ in range(draw.randrange(4))},
    ]
    return draw.choice(kinds if depth else kinds[:2])()


def odd_body(draw: random.Random) -> str:
    """A body that resembles a completion, an error or a list of models, with something wrong in it."""
    message: Any = {"role": "assistant", "content": odd_values(draw)}
    choice: Any = {"message": message, "finish_reason": odd_values(draw, 1)}
    body: Any = draw.choice(
        [
            {"choices": [choice]},
            {"choices": odd_values(draw)},
            {"choices": [{"message": odd_values(draw)}]},
            {"error": odd_values(draw)},
            {"data": odd_values(draw)},
            odd_values(draw),
        ]
    )
    text = json.dumps(body)
    cut = draw.randrange(len(text) + 1) if draw.random() < 0.3 else len(text)
    return text[:cut]


@pytest.mark.parametrize("seed", range(4))
def test_odd_bodies_are_answers_or_errors_in_words(seed: int):
    draw = random.Random(seed)
    texts = longest = 0
    for _ in range(int(os.environ.get("REALISR_ATTACKS") or 500)):
        body = odd_body(draw)
        assert len(wire.error_message(body)) <= wire.SHOWN_BODY + 1
        wire.model_names(body)
        try:
            text = wire.content(body, "http://localhost/v1", 100)
        except AnswerError as error:
            longest = max(longest, len(str(error)))
            continue
        texts += 1
        found = read(text)
        if isinstance(found, AnswerError):
            longest = max(longest, len(str(found)))
        else:
            assert all(isinstance(each, str) for each in found.values())
            assert found["prompt"]
    assert longest < 800
    assert texts, "hardly any of them came as far as the text"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("nan", 0.0), ("-5", 0.0), ("inf", float("inf")), ("1e999", float("inf")), ("soon", None), ("", None)],
)
def test_odd_waits(value: str, seconds: float | None):
    assert wire.retry_after({"retry-after": value}) == seconds


@pytest.mark.parametrize(
    "date",
    [
        "Mon, 99999999999 Jan 2030 00:00:00 GMT",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "Mon, 01 Jan 0001 00:00:00 -0000",
        "Fri, 31 Dec 9999 23:59:59 -2359",
    ],
)
def test_odd_dates(date: str):
    assert wire.retry_after({"retry-after": date}) is None or wire.retry_after({"retry-after": date}) >= 0
