"""What an MM-ControlNet reads, carried by the CONDITIONING: the latent it looks at and the local prompt.

They are ordinary model conditions of the host, so whatever crops, batches or replaces conditions per tile does so with
these: the latent is a CONDNoiseShape, cropped with the noise; tokens and pooled text are CONDRegular.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import comfy.conds
from torch import Tensor

PREFIX = "mm_control"

Conditioning = list[list[Any]]


class ControlKeys(NamedTuple):
    """Names of the conditions of the MM-ControlNet in one slot: several on one MODEL are numbered from 0."""

    latent: str
    tokens: str
    pooled: str

    @classmethod
    def of(cls, slot: int) -> ControlKeys:
        return cls(*(f"{PREFIX}_{slot}_{field}" for field in cls._fields))


class ControlLatentCond(comfy.conds.CONDNoiseShape):
    """A latent per image, which the host repeats to the batch; it would drop surplus ones without a word."""

    def process_cond(self, batch_size, area, **kwargs):
        if batch_size % self.cond.shape[0]:
            raise ValueError(
                f"The LATENT being sampled holds {batch_size} latents, which is no multiple of the "
                f"{self.cond.shape[0]} that Apply MM-ControlNet was given. Give it one latent, or one per image."
            )
        return super().process_cond(batch_size, area, **kwargs)


@dataclass(frozen=True)
class LocalPrompt:
    """An encoded prompt: tokens `[b, M, text_width]`, pooled `[b, pooled_width]`."""

    tokens: Tensor
    pooled: Tensor

    @classmethod
    def from_entry(cls, entry: Sequence[Any], pooled_width: int) -> LocalPrompt:
        """The text of one entry of a CONDITIONING; without a pooled text, zeros stand for it as in FLUX itself."""
        tokens, pooled = entry[0], entry[1].get("pooled_output")
        return cls(tokens, tokens.new_zeros(tokens.shape[0], pooled_width) if pooled is None else pooled)

    def conditions(self, keys: ControlKeys) -> dict[str, comfy.conds.CONDRegular]:
        return {
            keys.tokens: comfy.conds.CONDRegular(self.tokens),
            keys.pooled: comfy.conds.CONDRegular(self.pooled),
        }


def with_control(entry: Sequence[Any], slot: int, latent: Tensor, prompt: LocalPrompt) -> list[Any]:
    """A copy of a CONDITIONING entry that carries a slot's latent `[b, C, H, W]` (model space) and local prompt."""
    keys = ControlKeys.of(slot)
    conditions = {keys.latent: ControlLatentCond(latent), **prompt.conditions(keys)}
    return [entry[0], {**entry[1], "model_conds": {**entry[1].get("model_conds", {}), **conditions}}]


def with_local_prompt(model_conds: Mapping[str, Any], prompt: LocalPrompt) -> dict[str, Any]:
    """Model conditions with another local prompt, a tile's, for every MM-ControlNet they carry."""
    changed = dict(model_conds)
    slot = 0
    while (keys := ControlKeys.of(slot)).latent in model_conds:
        changed |= prompt.conditions(keys)
        slot += 1
    return changed
