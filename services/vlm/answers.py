"""From what a model writes to the texts that were asked for.

An answer is text and nothing else: it is searched for JSON, cleaned, and measured. Nothing in it is ever followed.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable

from .protocol import AnswerError, UnusableAnswer

THOUGHTS = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
THOUGHTS_END = re.compile(r"^.*</(?:think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
THOUGHTS_START = re.compile(r"^\s*<(?:think|thinking|reasoning)>", re.IGNORECASE)
FENCE = re.compile(r"```[\w-]*\s*\n?(.*?)```", re.DOTALL)
JSON_START = re.compile(r"(?:```[\w-]*\s*)?\{")
REFUSAL = re.compile(
    r"^\W*(i['’]?m sorry|i am sorry|sorry,|i apologi[sz]e|i can(?:no|['’]?)t\b|i(?: am|['’]m) (?:unable|not able)|"
    r"i won['’]?t\b|as an ai\b)",
    re.IGNORECASE,
)
SHOWN = 120


def excerpt(text: str, length: int = SHOWN) -> str:
    """The beginning of a text on one line, for an error message."""
    line = one_line(text)
    return line if len(line) <= length else f"{line[:length]}…"


def one_line(text: str) -> str:
    """Runs of white space become one space; characters that are not printed are dropped."""
    printed = "".join(" " if char.isspace() else char for char in text if char.isspace() or not is_control(char))
    return re.sub(r" +", " ", printed).strip()


def is_control(char: str) -> bool:
    """Control, format (zero-width, direction), private and unassigned characters."""
    return unicodedata.category(char).startswith("C")


def without_thoughts(text: str) -> str:
    """The answer of a reasoning model without what it wrote while thinking. Raises AnswerError if that is all."""
    text = THOUGHTS.sub("", text)
    text = THOUGHTS_END.sub("", text)  # chat templates that open the block themselves leave only its end
    if THOUGHTS_START.match(text):
        raise AnswerError("The model was still thinking when its answer ended. Raise max_tokens.")
    return text.strip()


def json_objects(text: str) -> Iterable[dict]:
    """JSON objects in a text, outermost ones, in order: in fences, in prose, or alone."""
    decoder = json.JSONDecoder(strict=False)  # models put raw line breaks into strings
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            start = text.find("{", start + 1)
            continue
        if isinstance(value, dict):
            yield value
        start = text.find("{", end)


def as_text(value: object) -> str:
    """A JSON value as one line of text; lists are joined."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, list):
        return "; ".join(filter(None, map(as_text, value)))
    return "" if value is None else one_line(json.dumps(value, ensure_ascii=False))


def read_fields(text: str, fields: tuple[str, ...]) -> dict[str, str]:
    """The texts named by `fields` from an answer; the first one is required, the others may be empty.

    Looks for a JSON object (alone, in a fence, in prose), then for labelled lines ("Prompt: ..."), and takes an answer
    with neither as the first field. Raises AnswerError for an empty answer, a refusal, or JSON that broke off.
    """
    main = fields[0]
    text = without_thoughts(text)
    if not text:
        raise UnusableAnswer("The answer is empty.")
    for found in json_objects(text):
        folded = {str(key).strip().lower(): value for key, value in found.items()}
        if as_text(folded.get(main)):
            found_texts = {name: as_text(folded.get(name)) for name in fields}
            return {**found_texts, main: not_a_refusal(found_texts[main])}
    if JSON_START.match(text) or f'"{main}"' in text:
        raise UnusableAnswer(f"The answer is not valid JSON with a text named {main}: {excerpt(text)}")
    labelled = labelled_lines(text, fields)
    if labelled.get(main):
        return {**{name: labelled.get(name, "") for name in fields}, main: plain(labelled[main])}
    return {main: plain(text), **dict.fromkeys(fields[1:], "")}


def labelled_lines(text: str, fields: tuple[str, ...]) -> dict[str, str]:
    """Texts after "Name:" at the start of a line, up to the next such label."""
    label = re.compile(rf"^[\s*#>-]*({'|'.join(map(re.escape, fields))})[\s*]*:[\s*]*", re.IGNORECASE | re.MULTILINE)
    marks = list(label.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return {mark[1].lower(): one_line(text[mark.end() : end]) for mark, end in zip(marks, ends, strict=False)}


def plain(text: str) -> str:
    """An answer as one line, without a fence or quotation marks around it. Raises AnswerError for a refusal."""
    fence = FENCE.search(text)
    line = one_line(fence[1] if fence else text)
    for opening, closing in ('""', "“”", "''"):
        if len(line) > 1 and line[0] == opening and line[-1] == closing and opening not in line[1:-1]:
            line = line[1:-1].strip()
    if not line:
        raise UnusableAnswer("The answer is empty.")
    return not_a_refusal(line)


def not_a_refusal(line: str) -> str:
    """The text itself. Raises AnswerError when it begins as refusals do, which no description of a picture does."""
    if REFUSAL.match(line):
        raise AnswerError(f"The model refused: {excerpt(line)}")
    return line


def within(text: str, max_length: int) -> str:
    """The text if it is no longer than `max_length` characters. Raises AnswerError otherwise: half a prompt is none."""
    if len(text) > max_length:
        raise UnusableAnswer(
            f"The prompt in the answer has {len(text)} characters, at most {max_length} are allowed (max_length): "
            f"{excerpt(text, 60)}"
        )
    return text
