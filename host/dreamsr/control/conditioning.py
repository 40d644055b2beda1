"""What an MM-ControlNet reads, carried by the CONDITIONING: the latent it looks at and the local prompt.

They are ordinary model conditions of the host, so whatever crops, batches or replaces conditions per tile does so with
these: the latent is a CONDNoiseShape, cropped with the noise; tokens and pooled text are CONDRegular; how to run is a
CONDConstant, so that only conditions that are to be run alike share a forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import comfy.conds
from torch import Tensor

from ...types import Entry
from .loader import MMControl

PREFIX = "mm_control"


@dataclass(frozen=True)
class ApplyOptions:
    """How an MM-ControlNet acts. Raises ValueError when start and end leave no step for it."""

    strength: float = 1.0
    """Of both branches; 0 is plain FLUX."""
    start: float = 0.0
    """Share of the sampling, from pure noise on, after which it sets in."""
    end: float = 1.0
    """Share of the sampling after which it ends."""
    text_branch: bool = True
    """Whether the text stream is steered too (eq. 2), or the image stream alone (eq. 1)."""

    def __post_init__(self):
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(
                f"start_percent {self.start} and end_percent {self.end} leave no step for the MM-ControlNet. "
                "Make start the smaller one, both between 0 and 1."
            )

    @property
    def always(self) -> bool:
        return self.start <= 0.0 and self.end >= 1.0


@dataclass(frozen=True)
class ControlRun:
    """A control network and how to run it."""

    control: MMControl
    blocks: tuple[int, ...]
    """The DiT block that each of its blocks acts on."""
    options: ApplyOptions


class ControlKeys(NamedTuple):
    """Names of the conditions of one MM-ControlNet: several on one conditioning are numbered from 0."""

    run: str
    latent: str
    tokens: str
    pooled: str

    @classmethod
    def of(cls, slot: int) -> ControlKeys:
        return cls(*(f"{PREFIX}_{slot}_{field}" for field in cls._fields))

    @classmethod
    def used(cls, conditions: Mapping[str, Any]) -> Iterator[ControlKeys]:
        """Of every MM-ControlNet that conditions, or the model's arguments made of them, carry."""
        slot = 0
        while (keys := cls.of(slot)).run in conditions:
            yield keys
            slot += 1


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
    """An encoded prompt, as the control network reads it."""

    tokens: Tensor
    """`[b, M, text_width]`."""
    pooled: Tensor
    """`[b, pooled_width]`."""

    @classmethod
    def from_entry(cls, entry: Entry, pooled_width: int) -> LocalPrompt:
        """The text of one entry of a CONDITIONING; without a pooled text, zeros stand for it as in FLUX itself."""
        tokens, pooled = entry[0], entry[1].get("pooled_output")
        return cls(tokens, tokens.new_zeros(tokens.shape[0], pooled_width) if pooled is None else pooled)

    def conditions(self, keys: ControlKeys) -> dict[str, comfy.conds.CONDRegular]:
        return {
            keys.tokens: comfy.conds.CONDRegular(self.tokens),
            keys.pooled: comfy.conds.CONDRegular(self.pooled),
        }


def with_control(entry: Entry, run: ControlRun, latent: Tensor, prompt: LocalPrompt) -> Entry:
    """A copy of a CONDITIONING entry that carries one more MM-ControlNet, latent `[b, C, H, W]` in model space."""
    carried = entry[1].get("model_conds", {})
    keys = ControlKeys.of(len(list(ControlKeys.used(carried))))
    conditions = {
        keys.run: comfy.conds.CONDConstant(run),
        keys.latent: ControlLatentCond(latent),
        **prompt.conditions(keys),
    }
    return [entry[0], {**entry[1], "model_conds": {**carried, **conditions}}]


def with_local_prompt(model_conds: Mapping[str, Any], prompt: LocalPrompt) -> dict[str, Any]:
    """Model conditions with another local prompt, a tile's, for every MM-ControlNet they carry."""
    changed = dict(model_conds)
    for keys in ControlKeys.used(model_conds):
        changed |= prompt.conditions(keys)
    return changed
