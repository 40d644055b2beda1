"""The text of an answer: what the model perceives and understands before it draws (arXiv 2503.11073, section 3.2).

Free writing gives '<degradation sentence>. <caption>'. Which of the two the image is then conditioned on can be chosen,
as in the paper's ablation (table 5): the model writes, and what is not wanted is taken out of its context again before
the image starts. So a caption without a sentence is the caption the model would have written anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import logits as stages
from .options import AnswerParts, GenerationOptions
from .prompt import SENTENCE_END, Tokenizer
from .session import GenerationError, Session
from .vocabulary import BOI, EOI, EOT

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


def kept_ids(ids: list[int], parts: AnswerParts, description: str | None, tokenizer: Tokenizer | None) -> list[int]:
    """The text the image is conditioned on, from the text the model wrote."""
    if parts == "none":
        return []
    if parts == "full" and description is None:
        return ids
    assert tokenizer is not None, "this choice of text needs a tokenizer"
    end = sentence_length(ids, tokenizer) or len(ids)
    if parts == "perception":
        return ids[:end]
    if description is None:
        return ids[end:]
    sentence = ids[:end] if parts == "full" else []
    return [*sentence, *tokenizer.encode(f" {description}" if sentence else description)]


def write_text(
    session: Session,
    hidden: Tensor,
    options: GenerationOptions,
    descriptions: Sequence[str | None],
    tokenizer: Tokenizer | None,
) -> tuple[list[list[int]], list[list[int]]]:
    """Let the model write and leave in its context what is wanted: (written, kept) text ids of each image."""
    parts = options.parts
    written: list[list[int]] = [[] for _ in descriptions]
    only_sentence = parts == "perception" or (parts == "full" and None not in descriptions)
    if parts in ("full", "perception") or (parts == "understanding" and None in descriptions):
        written = write(session, hidden, options, tokenizer if only_sentence else None)
    pairs = zip(written, descriptions, strict=True)
    kept = [kept_ids(ids, parts, description, tokenizer) for ids, description in pairs]
    if kept == written and not only_sentence:
        session.starts = [start + len(ids) for start, ids in zip(session.starts, kept, strict=True)]
    else:
        session.append(kept)
    return written, kept


def write(
    session: Session, hidden: Tensor, options: GenerationOptions, tokenizer: Tokenizer | None = None
) -> list[list[int]]:
    """Text ids of each image up to where it starts its image, drawn after the last hidden states `[B, D]`.

    With a tokenizer, at least the first sentence of each and no more than needed for that. Raises GenerationError,
    naming the image, where an answer ends otherwise or is longer than `options.max_text_tokens`.
    """
    limit = options.max_text_tokens
    batch, device = session.batch, session.device
    tokens = torch.zeros(batch, limit + 1, dtype=torch.long, device=device)
    invalid = torch.zeros(batch, limit + 1, dtype=torch.bool, device=device)
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    positions = torch.tensor(session.starts, device=device)
    uniforms = session.uniforms("text", limit + 1)
    for step in range(limit + 1):
        logits = session.network.logits(hidden)
        p = stages.text_distribution(logits, options.text_top_k, options.sampling.temperature)
        # Images that have stopped repeat BOI in place.
        token = torch.where(done, BOI, stages.draw(p, uniforms[:, step]))
        invalid[:, step] = p[:, 0].isnan() & ~done
        tokens[:, step] = token
        done |= (token == BOI) | (token == EOI) | (token == EOT)
        if (step + 1) % CHUNK == 0 or step == limit:
            texts = checked_texts(tokens[:, : step + 1].tolist(), invalid[:, : step + 1].tolist())
            complete, shown = done.tolist(), texts
            if tokenizer is not None:
                ends = [sentence_length(text, tokenizer) for text in texts]
                complete = [stopped or end is not None for stopped, end in zip(complete, ends, strict=True)]
                # What follows the sentence is written in vain, up to the next look.
                shown = [text[:end] for text, end in zip(texts, ends, strict=True)]
            session.observer.text(shown, all(complete))
            if all(complete):
                return texts
            if step == limit:
                raise GenerationError(
                    f"image {complete.index(False) + 1}: the model wrote {limit} text tokens without starting an "
                    "image. Raise the text limit, use PURE's own weights and instruction, or choose no text guidance."
                )
        length = max(session.starts) + step + 1
        hidden = session.feed(tokens[:, step : step + 1], positions[:, None], length)[:, -1]
        positions += ~done
        session.pacer.step()
        session.observer.step("text", step + 1, limit)
    raise AssertionError("unreachable: the last step returns or raises")


def checked_texts(tokens: list[list[int]], invalid: list[list[bool]]) -> list[list[int]]:
    """What of each image's tokens is text, up to its stop; raises GenerationError on what is none."""
    texts = []
    for image, (row, broken) in enumerate(zip(tokens, invalid, strict=True), start=1):
        stop = next((place for place, token in enumerate(row) if token in (BOI, EOI, EOT)), len(row))
        if True in broken:
            raise GenerationError(
                f"image {image}: the model's logits are not finite at text token {broken.index(True) + 1}. Load the "
                "model in a wider data type (bf16 or fp32 instead of fp16), or check its file."
            )
        if stop < len(row) and row[stop] != BOI:
            raise GenerationError(
                f"image {image}: the model ended its answer with token {row[stop]} after {stop} text tokens without "
                f"starting an image (it starts one with token {BOI}). Use PURE's own weights and instruction, or "
                "choose no text guidance."
            )
        texts.append(row[:stop])
    return texts
