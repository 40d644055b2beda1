"""The two things asked about an image to be restored: a caption, and a revision of a prompt (VICR, arXiv 2606.00704).

The paper gives rules for the agent, not its words: the instructions are the pack's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor

from .answers import read_fields, within
from .protocol import Picture, Question

INSTRUCTIONS = Path(__file__).parent / "instructions"
LENGTH_MARK = "{max_length}"
"""Replaced in an instruction, the pack's or an artist's. Every other brace is text."""

Style = Literal["sentences", "tags"]

PROMPT_FIELDS = {
    "prompt": "The complete revised prompt.",
    "changes": "What differs from the previous prompt, in one short sentence.",
    "reason": "Why, from what the pictures show, in one short sentence.",
}


@dataclass(frozen=True)
class RefinedPrompt:
    """What the agent answers, each on one line."""

    prompt: str
    """The whole prompt of the next round."""
    changes: str
    """What the agent says it changed; empty when it did not say."""
    reason: str
    """Why; empty when it did not say."""


def instruction(name: str, max_length: int, override: str = "") -> str:
    """An artist's instruction, or the pack's template of this name when there is none, with the length limit put in."""
    text = override if override.strip() else (INSTRUCTIONS / f"{name}.txt").read_text(encoding="utf-8")
    return text.replace(LENGTH_MARK, str(max_length)).strip()


def refine_question(
    image: Tensor,
    previous_prompt: str,
    previous_result: Tensor | None = None,
    max_length: int = 1500,
    override: str = "",
    seed: int | None = None,
    initial_prompt: str = "",
) -> Question:
    """Ask for the next prompt P_k from the LQ image, the raw result of the round before and its prompt P_{k-1}.

    image, previous_result: `[H, W, C]` in 0..1. initial_prompt: P_0, an anchor in every round (appendix E.3); blank
    where there is none. The answer is a RefinedPrompt of at most `max_length` characters.
    """
    pictures = [Picture("Low-quality input:", image)]
    if previous_result is not None:
        pictures.append(Picture("Previous result, restored with the previous prompt:", previous_result))
    missing = "" if previous_result is not None else "There is no previous result yet: this is the first round.\n\n"
    anchor = f"Initial prompt:\n{initial_prompt}\n\n" if initial_prompt.strip() else ""
    return Question(
        instruction=instruction("refine", max_length, override),
        text=f"{missing}{anchor}Previous prompt:\n{previous_prompt}",
        pictures=tuple(pictures),
        fields=PROMPT_FIELDS,
        read=partial(_read_refined, max_length=max_length),
        seed=seed,
    )


def caption_question(
    image: Tensor, style: Style, max_length: int = 1500, override: str = "", seed: int | None = None
) -> Question:
    """Ask for the initial prompt P_0 of an LQ image `[H, W, C]` in 0..1. The answer is a text on one line."""
    return Question(
        instruction=instruction(f"caption_{style}", max_length, override),
        text="Write the prompt for this picture. Answer with the prompt only.",
        pictures=(Picture("Low-quality input:", image),),
        read=partial(_read_caption, max_length=max_length),
        seed=seed,
    )


def _read_refined(text: str, max_length: int) -> RefinedPrompt:
    found = read_fields(text, tuple(PROMPT_FIELDS))
    return RefinedPrompt(within(found["prompt"], max_length), found["changes"], found["reason"])


def _read_caption(text: str, max_length: int) -> str:
    return within(read_fields(text, ("prompt",))["prompt"], max_length)
