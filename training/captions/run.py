"""Describing many photos: what is done stays done, and what failed is told at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ...services.vlm.protocol import AnswerError, Question, VisionLanguageModel
from ..data.reading import PhotoError
from .kinds import Kind, Photo

CHUNK = 4
"""Photos that are read together, for each question in flight."""

Asked = tuple[Photo, list[Question] | PhotoError]
"""A photo with what is asked about it, or why nothing can be."""


@dataclass
class Report:
    """What became of the photos."""

    done: int = 0
    there: int = 0
    """Done in an earlier run."""
    failed: dict[Path, str] = field(default_factory=dict)
    given_up: int = 0
    """Photos that were not tried because too many had failed in a row."""


class Captioner:
    """Asks about photos and writes what is answered.

    jobs: questions in flight at once. give_up: failures in a row after which something is taken to be wrong with all.
    advance: called for every photo that is done or has failed.
    """

    def __init__(
        self,
        kind: Kind,
        model: VisionLanguageModel,
        jobs: int = 1,
        give_up: int = 20,
        advance: Callable[[], object] = lambda: None,
    ):
        self.kind, self.model, self.jobs, self.give_up, self.advance = kind, model, jobs, give_up, advance
        self.report = Report()
        self.in_a_row = 0

    def run(self, photos: Sequence[Photo], again: bool = False) -> Report:
        """Describe the photos that are not described yet; all of them with `again`.

        A photo is written as soon as its last question is answered. Raises SetupError where nothing can be asked, and
        OSError for a disk that takes nothing: what is there already stays.
        """
        waiting = [photo for photo in photos if again or not self.kind.is_done(photo)]
        self.report.there = len(photos) - len(waiting)
        size = CHUNK * self.jobs
        chunks = [waiting[start : start + size] for start in range(0, len(waiting), size)]
        for chunk in self.prepared(chunks):
            self.describe(chunk)
            if self.in_a_row >= self.give_up:
                self.report.given_up = len(waiting) - self.report.done - len(self.report.failed)
                break
        return self.report

    def prepared(self, chunks: Sequence[Sequence[Photo]]) -> Iterator[list[Asked]]:
        """Photos with what is asked about them; the next chunk is read while this one is answered."""
        with ThreadPoolExecutor(1) as reader:
            reading = deque(reader.submit(self.read, chunk) for chunk in chunks[:1])
            for following in [*chunks[1:], []]:
                ready = reading.popleft().result() if reading else []
                if following:
                    reading.append(reader.submit(self.read, following))
                yield ready

    def read(self, chunk: Sequence[Photo]) -> list[Asked]:
        found: list[Asked] = []
        for photo in chunk:
            try:
                found.append((photo, self.kind.ask(photo)))
            except PhotoError as error:
                found.append((photo, error))
        return found

    def describe(self, chunk: Sequence[Asked]) -> None:
        questions: list[Question] = []
        owners: list[int] = []
        answers: list[list[object]] = []
        for number, (photo, asked) in enumerate(chunk):
            answers.append([])
            if isinstance(asked, PhotoError):
                self.fail(photo, str(asked))
                continue
            owners += [number] * len(asked)
            questions += asked
            answers[number] = [None] * len(asked)
        first = {owner: index for index, owner in reversed(list(enumerate(owners)))}
        left = {owner: owners.count(owner) for owner in first}
        for answer in self.model.answers(questions, lambda: None, self.jobs) if questions else ():
            owner = owners[answer.index]
            answers[owner][answer.index - first[owner]] = answer.value
            left[owner] -= 1
            if not left[owner]:
                self.settle(chunk[owner][0], answers[owner])

    def settle(self, photo: Photo, answers: Sequence[object]) -> None:
        """Write a photo's files, or note why there are none."""
        errors = [answer for answer in answers if isinstance(answer, AnswerError)]
        if errors:
            self.fail(photo, str(errors[0]))
            return
        try:
            self.kind.write(photo, answers)
        except PhotoError as error:
            self.fail(photo, str(error))
            return
        self.report.done += 1
        self.in_a_row = 0
        self.advance()

    def fail(self, photo: Photo, reason: str) -> None:
        self.report.failed[photo.path] = reason
        self.in_a_row += 1
        self.advance()
