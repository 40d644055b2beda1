"""What is asked of a vision-language model, whichever answers it, and how that fails."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

TEMPLATE_MARK = re.compile(r"<(?=\S)")

ATTEMPTS = 3
"""Of a model in this process; endpoints have a setting of their own."""

Poll = Callable[[], None]
"""Called several times a second while an answer is awaited; raises to give up."""


class AnswerError(Exception):
    """No usable answer: the service failed, refused, or answered something else. The message says what to do.

    try_again: whether the same question may be answered when it is asked once more. wait: seconds to wait before
    that, None for the usual back-off.
    """

    def __init__(self, message: str, try_again: bool = False, wait: float | None = None):
        super().__init__(message)
        self.try_again = try_again
        self.wait = wait


class UnusableAnswer(AnswerError):
    """The service works, and what it answered is not what was asked for: it may be told so and asked again at once."""

    def __init__(self, message: str):
        super().__init__(message, try_again=True, wait=0.0)


class SetupError(ValueError):
    """Nothing was asked: a library, a key or an address is missing or wrong on this machine."""


@dataclass(frozen=True)
class Picture:
    """An image `[H, W, C]` in 0..1 (C of 1, 3 or 4) and what it is, as told to the model."""

    label: str
    image: Tensor


@dataclass(frozen=True)
class Question:
    """One request.

    fields: name -> description of each text the answer consists of, to be given as JSON; empty for a plain text.
    read: the answer's text -> the answer itself; raises AnswerError for an answer that is not one, which is then
    asked for again where the service can. seed: for services that take one.
    """

    instruction: str
    text: str
    pictures: tuple[Picture, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[str], object] = str
    seed: int | None = None

    @property
    def full_instruction(self) -> str:
        """The instruction, with the form of the answer where it has one."""
        if not self.fields:
            return self.instruction
        form = json.dumps(dict(self.fields), indent=2)
        return f"{self.instruction}\n\nAnswer with one JSON object of this form and nothing else:\n{form}"

    @property
    def as_one_text(self) -> str:
        """Everything but the pictures, for a model that is given these first and one text after them.

        A prompt in it cannot pass for the marks of a chat template, such as <|im_end|> or <image>.
        """
        listed = "\n".join(f"Picture {number}. {picture.label}" for number, picture in enumerate(self.pictures, 1))
        return f"{self.full_instruction}\n\n{listed}\n\n{TEMPLATE_MARK.sub('< ', self.text)}"


@dataclass(frozen=True)
class Answer:
    """index: of the question. value: what the question's `read` made of the answer, or the error it ended with."""

    index: int
    value: object

    def result(self) -> object:
        if isinstance(self.value, AnswerError):
            raise self.value
        return self.value


class VisionLanguageModel(Protocol):
    """A service that answers questions about pictures. Made by the loaders, carried on the VLM wire."""

    def answers(self, questions: Sequence[Question], poll: Poll, in_flight: int = 1) -> Iterator[Answer]:
        """Answers as they arrive, in any order; a question that fails gives its error and does not stop the others.

        in_flight: questions asked at a time, for services that answer several. Raises SetupError, and what poll raises.
        """
        ...


def ask(model: VisionLanguageModel, question: Question, poll: Poll) -> object:
    """The answer to one question. Raises AnswerError, SetupError, and what poll raises."""
    (answer,) = model.answers([question], poll)
    return answer.result()


def one_by_one(questions: Iterable[Question], answer: Callable[[Question], str], poll: Poll) -> Iterator[Answer]:
    """Answers of a model in this process, which works on one question at a time. answer: question -> text."""
    for index, question in enumerate(questions):
        yield Answer(index, _settle(question, answer, poll))


def _settle(question: Question, answer: Callable[[Question], str], poll: Poll) -> object:
    """The answer, or the error of the last attempt. A further one is told what was wrong and has another seed."""
    asked = question
    for attempt in range(1, ATTEMPTS + 1):
        poll()
        try:
            return question.read(answer(asked))
        except UnusableAnswer as error:
            last = AnswerError(f"{error} (asked {attempt} times)")
            text = f"{question.text}\n\n{complaint(error)}"
            asked = replace(question, text=text, seed=(question.seed or 0) + attempt)
        except AnswerError as error:
            return error
    return last


def complaint(error: UnusableAnswer) -> str:
    """What a model is told about its last answer."""
    return f"Your last answer could not be used. {error}"
