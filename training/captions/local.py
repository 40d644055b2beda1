"""A vision-language model of transformers on a device, without ComfyUI."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ...services.vlm.answers import excerpt
from ...services.vlm.protocol import Answer, AnswerError, Poll, Question, in_batches
from ...services.vlm.transformers import LocalVLM


@dataclass(frozen=True)
class DeviceVLM:
    """Answers with `local`, whose network is on `device`."""

    local: LocalVLM
    device: torch.device

    @property
    def identity(self) -> Hashable:
        """The network, and how it is asked."""
        return id(self.local.network), self.local.temperature, self.local.image_size

    def answers(self, questions: Sequence[Question], poll: Poll, in_flight: int = 1) -> Iterator[Answer]:
        """See VisionLanguageModel; `in_flight` questions are answered as one batch."""

        def answers(batch: Sequence[Question]) -> list[str | AnswerError]:
            return [self.whole(*written) for written in self.local.answers(batch, self.device, poll)]

        return in_batches(questions, in_flight, answers, poll)

    def whole(self, text: str, complete: bool) -> str | AnswerError:
        """The text, or an error for one that was cut off: half a caption is none."""
        if complete:
            return text
        return AnswerError(f"The model did not come to an end within {self.local.max_tokens} tokens: {excerpt(text)}")
