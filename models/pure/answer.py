"""The text of an answer: what the model perceives and understands before it draws (arXiv 2503.11073, section 3.2).

Free writing gives '<degradation sentence>. <caption>'. Which of the two the image is then conditioned on can be chosen,
as in the paper's ablation (table 5): the model writes, and what is not wanted is taken out of its context again before
the image starts. So a caption without a sentence is the caption the model would have written anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from . import logits as stages
from .draws import uniforms_on
from .prompt import SENTENCE_END, Tokenizer
from .session import Session
from .vocabulary import BOI, EOI, EOT

Guidance = Literal["full", "perception", "understanding", "none"]
GUIDANCE: tuple[Guidance, ...] = get_args(Guidance)

CHUNK = 8
"""Text tokens between two looks of the host."""


def sentence_length(ids: Sequence[int], tokenizer: Tokenizer) -> int | None:
    """Tokens of the first sentence, its full stop included; None when none has ended."""
    for length in range(1, len(ids) + 1):
        if SENTENCE_END in tokenizer.decode(ids[length - 1 : length]):
            return length
    return None


def split_text(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, str]:
    """(degradation sentence, description) of text ids."""
    end = sentence_length(ids, tokenizer) or len(ids)
    return tokenizer.decode(ids[:end]).strip(), tokenizer.decode(ids[end:]).strip()


def needs_writing(guidance: Guidance, description: str | None) -> bool:
    """Whether the model has to write anything itself."""
    return guidance in ("full", "perception") or (guidance == "understanding" and description is None)


def kept_ids(ids: list[int], guidance: Guidance, description: str | None, tokenizer: Tokenizer | None) -> list[int]:
    """The text the image is conditioned on, from the text the model wrote."""
    if guidance == "none":
        return []
    if guidance == "full" and description is None:
        return ids
    assert tokenizer is not None, "this choice of text needs a tokenizer"
    end = sentence_length(ids, tokenizer) or len(ids)
    if guidance == "perception":
        return ids[:end]
    if description is None:
        return ids[end:]
    sentence = ids[:end] if guidance == "full" else []
    return [*sentence, *tokenizer.encode(f" {description}" if sentence else description)]


class Writer:
    """Writes text for every image at once until each has started its image."""

    def __init__(self, session: Session, hidden: Tensor, top_k: int, temperature: float, limit: int):
        self.session = session
        self.top_k = top_k
        self.temperature = temperature
        self.limit = limit
        batch, device = session.batch, session.device
        self.logits = session.network.logits(hidden)
        self.tokens = torch.zeros(batch, limit + 1, dtype=torch.long, device=device)
        self.positions = torch.tensor(session.starts, device=device)
        self.done = torch.zeros(batch, dtype=torch.bool, device=device)
        self.invalid = torch.zeros(batch, limit + 1, dtype=torch.bool, device=device)

    def choose(self, step: int, uniform: Tensor) -> None:
        """Draw token `step` of every image that has not stopped; those that have repeat BOI in place."""
        p = stages.text_distribution(self.logits, self.top_k, self.temperature)
        token = torch.where(self.done, BOI, stages.draw(p, uniform))
        self.invalid[:, step] = p[:, 0].isnan() & ~self.done
        self.tokens[:, step] = token
        self.done |= (token == BOI) | (token == EOI) | (token == EOT)

    def advance(self, step: int) -> None:
        """Feed the tokens just chosen and compute what comes next."""
        length = max(self.session.starts) + step + 1
        hidden = self.session.feed(self.tokens[:, step : step + 1], self.positions[:, None], length)
        self.logits = self.session.network.logits(hidden[:, -1])
        self.positions += ~self.done

    def texts(self, count: int) -> list[list[int]]:
        """What each image has of its text among the first `count` tokens; raises GenerationError on what is no text."""
        tokens, invalid = self.tokens[:, :count].tolist(), self.invalid[:, :count].tolist()
        texts = []
        for image, row in enumerate(tokens):
            stops = [n for n, token in enumerate(row) if token in (BOI, EOI, EOT)]
            text = row[: stops[0]] if stops else row
            if any(invalid[image]):
                at = invalid[image].index(True) + 1
                raise self.session.error(
                    image,
                    f"the model's logits are not finite at text token {at}. Load the model in a wider data type "
                    "(bf16 or fp32 instead of fp16), or check its file.",
                )
            if stops and row[stops[0]] != BOI:
                raise self.session.error(
                    image,
                    f"the model ended its answer with token {row[stops[0]]} after {len(text)} text tokens without "
                    f"starting an image (it starts one with token {BOI}). Use PURE's own weights and instruction, "
                    "or choose no text guidance.",
                )
            texts.append(text)
        return texts

    def write(self, tokenizer: Tokenizer | None) -> list[list[int]]:
        """Text ids of each image; with a tokenizer, at least its first sentence and no more than needed for that."""
        session = self.session
        for step in range(self.limit + 1):
            if step % CHUNK == 0:
                uniforms = uniforms_on(session.device, session.draws.take("text", CHUNK))
            self.choose(step, uniforms[:, step % CHUNK])
            if step % CHUNK == CHUNK - 1 or step == self.limit:
                texts = self.texts(step + 1)
                written, shown = self.done.tolist(), texts
                if tokenizer is not None:
                    ends = [sentence_length(text, tokenizer) for text in texts]
                    written = [done or end is not None for done, end in zip(written, ends, strict=True)]
                    # What follows the sentence is written in vain, up to the next look.
                    shown = [text[:end] for text, end in zip(texts, ends, strict=True)]
                session.observer.text(shown, all(written))
                if all(written):
                    return texts
                if step == self.limit:
                    raise session.error(
                        written.index(False),
                        f"the model wrote {self.limit} text tokens without starting an image. Raise the text limit, "
                        "use PURE's own weights and instruction, or choose no text guidance.",
                    )
            self.advance(step)
            session.pacer.step()
            session.observer.step("text", step + 1, self.limit)
        raise AssertionError("unreachable: the last step returns or raises")
