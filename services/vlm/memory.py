"""Answers that were given before, so that nothing is asked twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from .protocol import Answer, AnswerError, Poll, Question, VisionLanguageModel


@dataclass(frozen=True)
class KeyedQuestion:
    """A question that need not be asked where its answer is known."""

    question: Question
    key: Hashable
    """Equal for questions of which one answer serves all."""


class AnswerMemory:
    """The answers used last, at most `size` of them, for as long as this object lives.

    Keeps keys and answers; no pictures, and no errors: what failed is asked again.
    """

    def __init__(self, size: int = 4096):
        self.size = size
        self.kept: OrderedDict[Hashable, object] = OrderedDict()

    def __len__(self) -> int:
        return len(self.kept)

    def answers(
        self, model: VisionLanguageModel, questions: Sequence[KeyedQuestion], poll: Poll, in_flight: int = 1
    ) -> Iterator[Answer]:
        """As VisionLanguageModel.answers, without asking what the same model, or one like it, has answered.

        Remembered answers come first. Every answer is kept as it arrives, whatever becomes of the rest.
        """
        keys = [(model.identity, each.key) for each in questions]
        new: list[int] = []
        for index, key in enumerate(keys):
            if key in self.kept:
                self.kept.move_to_end(key)
                yield Answer(index, self.kept[key])
            else:
                new.append(index)
        asked = model.answers([questions[index].question for index in new], poll, in_flight) if new else ()
        for answer in asked:
            index = new[answer.index]
            if not isinstance(answer.value, AnswerError):
                self._keep(keys[index], answer.value)
            yield Answer(index, answer.value)

    def _keep(self, key: Hashable, value: object) -> None:
        self.kept[key] = value
        while len(self.kept) > self.size:
            self.kept.popitem(last=False)
