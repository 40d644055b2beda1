"""What NR-IQA Best-of-N Selector says of its candidates besides their scores: drift, a choice by hand, pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Tensor

from ..host.images import checked_image
from ..host.preview_files import save_preview
from ..models.drift import measure_drift, vetoed

SIDES = {"large": 1024, "small": 256}
"""Longest side in pixels of a card's pictures: to compare, and to choose from."""

MOST_PICTURES = 200
"""Candidates that the browser gets pictures of; of more it shows the numbers."""


def cards_of(
    candidates: Sequence[Tensor],
    contents: Sequence[str],
    drifts: Sequence[Sequence[float]],
    vetoes: Sequence[Sequence[bool]],
) -> list[dict[str, Any]]:
    """What the browser shows on the card of each candidate `[H, W, C]`: pictures, and its drift where it was measured.

    contents: names of what is in them. drifts, vetoes: image by image.
    """
    cards: list[dict[str, Any]] = [{"content": content} for content in contents]
    for card, candidate in zip(cards[:MOST_PICTURES], candidates, strict=False):
        pictures = {size: save_preview(candidate, side, card["content"]) for size, side in SIDES.items()}
        card["pictures"] = pictures if all(pictures.values()) else {}
    for card, drift, veto in zip(cards, chain(*drifts), chain(*vetoes), strict=False):
        card |= {"drift": drift if math.isfinite(drift) else None, "vetoed": veto}
    return cards


def pin_text(pin: int | None, best: int) -> str:
    """A choice by hand in words."""
    return "" if pin is None else f"candidate {pin} pinned, the scores choose {best}"


def drifts_of(subjects: Sequence[Sequence[Tensor]], lq_image: list[Tensor] | None, limit: float) -> list[list[float]]:
    """Drift of every candidate `[H, W, C]` of every image; zeros where the limit asks for none.

    Raises ValueError without low-quality images, or for another number of them than there are images.
    """
    name = "NR-IQA Best-of-N Selector"
    models = [item[..., :3] for batch in lq_image or () for item in checked_image(batch, f"{name} (lq_image): ")]
    if limit <= 0:
        return [[0.0] * len(candidates) for candidates in subjects]
    if not models:
        raise ValueError(f"{name}: drift_limit {limit:g} compares candidates with lq_image. Connect it, or set 0.")
    if len(models) not in (1, len(subjects)):
        raise ValueError(
            f"{name}: {len(models)} low-quality images came for {len(subjects)} images. Give one for each."
        )
    return [
        [measure_drift(candidate[..., :3], models[index % len(models)]).value for candidate in candidates]
        for index, candidates in enumerate(subjects)
    ]


def drift_text(drifts: Sequence[float], limit: float) -> str:
    """The drifts in words; nothing where none were measured."""
    if limit <= 0:
        return ""
    out = vetoed(drifts, limit)
    said = [f"{drift:.2f}{' (vetoed)' if veto else ''}" for drift, veto in zip(drifts, out, strict=True)]
    return f"drift {', '.join(said)}"
