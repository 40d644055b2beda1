"""From what a model writes to the texts that were asked for.

An answer is text and nothing else: it is searched for JSON, cleaned, and measured. Nothing in it is ever followed.
Whoever wrote it, reading it takes time in proportion to its length: a regular expression or a search that starts over
at each mark of a text full of marks holds the whole process for minutes.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from .protocol import AnswerError, UnusableAnswer

MAX_LENGTH = 1_000_000
"""Characters of an answer: more than the tokens that can be asked for."""
MAX_DEPTH = 64
"""Of lists and tables inside each other, in JSON."""
MAX_STARTS = 64
"""Places of a text at which a JSON object is looked for; each may be read to the end of the text."""

THOUGHT_MARK = re.compile(r"<(/?)(?:think|thinking|reasoning)>", re.IGNORECASE)
FENCE = "```"
LANGUAGE = re.compile(r"[\w-]*[^\S\n]*\n")
OBJECT_START = re.compile(r"\{\s*\"")
JSON_START = re.compile(r"(?:```[\w-]*\s*)?\{")
REFUSAL = re.compile(
    r"^\W*(i['’]?m sorry|i am sorry|sorry,|i apologi[sz]e|i can(?:no|['’]?)t\b|i(?: am|['’]m) (?:unable|not able)|"
    r"i won['’]?t\b|as an ai\b)",
    re.IGNORECASE,
)
SHOWN = 120
SHOWN_FROM = 16
"""Characters looked at for each that is shown: white space shrinks."""


def excerpt(text: str, length: int = SHOWN) -> str:
    """The beginning of a text on one line, for an error message."""
    line = one_line(text[: SHOWN_FROM * length])
    whole = len(text) <= SHOWN_FROM * length and len(line) <= length
    return line if whole else f"{line[:length]}…"


def one_line(text: str) -> str:
    """Runs of white space become one space; characters that are not printed are dropped."""
    printed = "".join(" " if char.isspace() else char for char in text if char.isspace() or not is_control(char))
    return re.sub(r" +", " ", printed).strip()


def is_control(char: str) -> bool:
    """Control, format (zero-width, direction), private and unassigned characters."""
    return unicodedata.category(char).startswith("C")


def without_thoughts(text: str) -> str:
    """The answer of a reasoning model without what it wrote while thinking. Raises AnswerError if that is all."""
    kept: list[str] = []
    position = 0  # after the last mark that was dealt with
    opened = False
    for mark in THOUGHT_MARK.finditer(text):
        if mark[1]:
            if not opened:  # chat templates that open the block themselves leave only its end
                kept.clear()
            position, opened = mark.end(), False
        elif not opened:
            kept.append(text[position : mark.start()])
            position, opened = mark.start(), True
    before = "".join(kept)
    if opened and not before.strip():
        raise AnswerError("The model was still thinking when its answer ended. Raise max_tokens.")
    return (before + text[position:]).strip()


def parse_json(text: str) -> Any:
    """`json.loads` of what strangers wrote. Raises ValueError also for what is nested too deeply to be walked."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    check_depth(value)
    return value


def check_depth(value: object) -> None:
    """Raises ValueError for lists and tables more than MAX_DEPTH inside each other."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return
    raise ValueError("nested too deeply")


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """JSON objects in a text, outermost ones, in order: in fences, in prose, or alone.

    Looked for at the first MAX_STARTS places that may be one. Raises UnusableAnswer for what is nested too deeply.
    """
    decoder = json.JSONDecoder(strict=False)  # models put raw line breaks into strings
    position = 0
    for _ in range(MAX_STARTS):
        start = OBJECT_START.search(text, position)
        if start is None:
            return
        try:
            value, position = decoder.raw_decode(text, start.start())
            check_depth(value)
        except json.JSONDecodeError:
            position = start.start() + 1
        except (ValueError, RecursionError):
            raise UnusableAnswer(f"The JSON in the answer cannot be read: {excerpt(text)}") from None
        else:
            yield value


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
    if len(text) > MAX_LENGTH:
        raise AnswerError(f"The answer has {len(text)} characters, far more than was asked for: {excerpt(text)}")
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
    label = re.compile(
        rf"^(?:[^\S\n]|[*#>-])*({'|'.join(map(re.escape, fields))})[\s*]*:[\s*]*", re.IGNORECASE | re.MULTILINE
    )
    marks = list(label.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return {mark[1].lower(): one_line(text[mark.end() : end]) for mark, end in zip(marks, ends, strict=False)}


def plain(text: str) -> str:
    """An answer as one line, without a fence or quotation marks around it. Raises AnswerError for a refusal."""
    line = one_line(fenced(text))
    for opening, closing in ('""', "“”", "''"):
        if len(line) > 1 and line[0] == opening and line[-1] == closing and opening not in line[1:-1]:
            line = line[1:-1].strip()
    if not line:
        raise UnusableAnswer("The answer is empty.")
    return not_a_refusal(line)


def fenced(text: str) -> str:
    """What stands in the first fence, without the name of its language; the text itself where there is none."""
    _, opening, rest = text.partition(FENCE)
    inside, closing, _ = rest.partition(FENCE)
    if not (opening and closing):
        return text
    language = LANGUAGE.match(inside)
    return inside[language.end() :] if language else inside


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
