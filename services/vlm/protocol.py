"""What is asked of a vision-language model, whichever answers it, and how that fails."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

TEMPLATE_MARK = re.compile(r"<(?=\S)")

ATTEMPTS = 3
"""Of a model in this process; endpoints have a setting of their own."""

Poll = Callable[[], None]
"""Called several times a second while an answer is awaited; raises to give up."""


class AnswerError(Exception):
    """No usable answer: the service failed, refused, or answered something else. The message says what to do."""

    def __init__(self, message: str, try_again: bool = False, wait: float | None = None):
        super().__init__(message)
        self.try_again = try_again
        """Whether the same question may be answered when it is asked once more."""
        self.wait = wait
        """Seconds to wait before that, None for the usual back-off."""


class UnusableAnswer(AnswerError):
    """The service works, and what it answered is not what was asked for: it may be told so and asked again at once."""

    def __init__(self, message: str):
        super().__init__(message, try_again=True, wait=0.0)


class SetupError(ValueError):
    """Nothing was asked: a library, a key or an address is missing or wrong on this machine."""


@dataclass(frozen=True)
class Picture:
    """A picture and what it is, as told to the model."""

    label: str
    image: Tensor
    """`[H, W, C]` in 0..1, C of 1, 3 or 4."""


@dataclass(frozen=True)
class Question:
    """One request."""

    instruction: str
    text: str
    pictures: tuple[Picture, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    """Name -> description of each text the answer consists of, to be given as JSON; empty for a plain text."""
    read: Callable[[str], object] = str
    """The answer's text -> the answer itself. Raises AnswerError for an answer that is not one, which is then asked for
    again where the service can."""
    seed: int | None = None
    """For services that take one."""

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
    """What became of a question."""

    index: int
    """Of the question."""
    value: object
    """What the question's `read` made of the answer, or the AnswerError it ended with."""

    def result(self) -> object:
        """The value. Raises it where it is an error."""
        if isinstance(self.value, AnswerError):
            raise self.value
        return self.value


class VisionLanguageModel(Protocol):
    """A service that answers questions about pictures. Made by the loaders, carried on the VLM wire."""

    @property
    def identity(self) -> Hashable:
        """Equal for services that answer alike, so that answers of one stand for the other's. Holds no key."""
        ...

    def answers(self, questions: Sequence[Question], poll: Poll, in_flight: int = 1) -> Iterator[Answer]:
        """Answers as they arrive, in any order; a question that fails gives its error and does not stop the others.

        in_flight: questions asked at a time, for services that answer several. Raises SetupError, and what poll raises.
        """
        ...


def ask(model: VisionLanguageModel, question: Question, poll: Poll) -> object:
    """The answer to one question. Raises AnswerError, SetupError, and what poll raises."""
    (answer,) = model.answers([question], poll)
    return answer.result()


def in_batches(
    questions: Iterable[Question],
    size: int,
    answers: Callable[[Sequence[Question]], Sequence[str | AnswerError]],
    poll: Poll,
) -> Iterator[Answer]:
    """Answers of a model in this process, which works on up to `size` questions together.

    answers: questions -> a text or an error for each. What cannot be used is asked for again, after the others; the
    model is then told what was wrong and has another seed.
    """
    waiting = deque(_Asked(index, question) for index, question in enumerate(questions))
    while waiting:
        poll()
        batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
        for asked, text in zip(batch, answers([each.wording for each in batch]), strict=True):
            value = asked.value(text)
            if isinstance(value, _Asked):
                waiting.append(value)
            else:
                yield Answer(asked.index, value)


@dataclass(frozen=True)
class _Asked:
    """An attempt at a question."""

    index: int
    question: Question
    attempt: int = 1
    trouble: UnusableAnswer | None = None
    """With the attempt before."""

    @property
    def wording(self) -> Question:
        if self.trouble is None:
            return self.question
        text = f"{self.question.text}\n\n{complaint(self.trouble)}"
        return replace(self.question, text=text, seed=(self.question.seed or 0) + self.attempt - 1)

    def value(self, text: str | AnswerError) -> object:
        """What the question's `read` makes of the answer, the error it ends with, or the next attempt."""
        try:
            if isinstance(text, AnswerError):
                raise text
            return self.question.read(text)
        except UnusableAnswer as error:
            if self.attempt < ATTEMPTS:
                return replace(self, attempt=self.attempt + 1, trouble=error)
            return AnswerError(f"{error} (asked {self.attempt} times)")
        except AnswerError as error:
            return error


def complaint(error: UnusableAnswer) -> str:
    """What a model is told about its last answer."""
    return f"Your last answer could not be used. {error}"
