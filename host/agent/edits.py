"""Prompts that the artist wrote for rounds of a loop, instead of asking the agent there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

Edits = Mapping[int, str]
"""Number of a round, 2 or more -> its prompt."""

NO_EDITS: Edits = MappingProxyType({})


def read_edits(text: str, rounds: int, max_length: int) -> Edits:
    """Edits from JSON such as {"3": "a house at dusk"}, in the order of the rounds; "" for none.

    Those for rounds after the last are left out. Raises ValueError with what to do about a text that cannot be used.
    """
    if not text.strip():
        return NO_EDITS
    try:
        read = json.loads(text)
        edits = {int(number): prompt for number, prompt in read.items()}
    except (ValueError, AttributeError, TypeError):
        raise ValueError(unusable(f"{text[:60]!r}")) from None
    for number, prompt in edits.items():
        if number < 2 or not isinstance(prompt, str):
            raise ValueError(unusable(f"{number}: {prompt!r:.60}"))
        if not prompt.strip():
            raise ValueError(
                f"Agent Refinement Loop: your prompt for round {number} is empty. Write one, or start over."
            )
        if len(prompt) > max_length:
            raise ValueError(
                f"Agent Refinement Loop: your prompt for round {number} has {len(prompt)} characters and max_length "
                f"allows {max_length}. Raise max_length or shorten the prompt."
            )
    return {number: edits[number] for number in sorted(edits) if number <= rounds}


def unusable(seen: str) -> str:
    return (
        f"Agent Refinement Loop: edited_prompts has {seen}. It takes prompts by the number of the round, from 2 on, "
        'such as {"3": "a house at dusk"}; leave it empty to ask the agent in every round.'
    )
