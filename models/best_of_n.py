"""Best-of-N: choosing one of several restorations of an image by the ranks of their scores (arXiv 2606.00704)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEAN_TOLERANCE = 1e-9
"""Mean normalised scores closer than this count as equal: what is left is rounding."""


@dataclass(frozen=True)
class Ranking:
    """How N candidates compare under M metrics."""

    ranks: Tensor
    """`[N, M]` int64, 1 = best; equal scores share a rank and the next one is skipped (1, 2, 2, 4)."""
    rank_sum: Tensor
    """`[N]` int64, over the metrics."""
    mean_normalized: Tensor
    """`[N]` float64 in 0..1, the mean over the metrics of the min-max-normalised scores, 1 = best."""
    best: int
    """Index of the chosen candidate, from 0."""


def best_of_n(
    scores: Tensor, higher_is_better: Sequence[bool] | Tensor, vetoed: Sequence[bool] | None = None
) -> Ranking:
    """The candidate with the smallest sum of ranks.

    scores: `[N, M]`, N candidates in the order they were made, M metrics. higher_is_better: `[M]`.
    Ties go to the larger mean of min-max-normalised scores, then to the earliest candidate. A score that is no finite
    number ranks behind every number of its metric, together with others like it, and adds 0 to the mean. vetoed: `[N]`,
    candidates that are not chosen and rank as if they had no scores; not all of them.

    Raises ValueError for a table without rows or columns.
    """
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores must be candidates x metrics with at least one of each, got {list(scores.shape)}")
    higher = torch.as_tensor(higher_is_better, dtype=torch.bool, device=scores.device)
    if higher.shape != scores.shape[1:]:
        raise ValueError(f"{scores.shape[1]} metrics need as many directions, got {list(higher.shape)}")
    merit = torch.where(higher, scores.double(), -scores.double())
    out = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    if vetoed is not None:
        out = torch.as_tensor(vetoed, dtype=torch.bool, device=scores.device)
        if out.shape != scores.shape[:1] or out.all():
            raise ValueError(f"{len(scores)} candidates need a veto or none each, and not all can have one")
        merit = merit.masked_fill(out[:, None], torch.nan)
    ranks = competition_ranks(merit)
    rank_sum = ranks.sum(dim=1)
    mean = min_max(merit).mean(dim=1)
    tied = (rank_sum == rank_sum[~out].min()) & ~out
    leading = tied & (mean >= mean[tied].max() - MEAN_TOLERANCE)
    return Ranking(ranks, rank_sum, mean, int(leading.nonzero()[0]))


def competition_ranks(merit: Tensor) -> Tensor:
    """Ranks `[N, M]` within each column of `merit` `[N, M]`: 1 + how many are better. Unusable scores come last."""
    usable = merit.isfinite()
    better = merit[None] > merit[:, None]
    ahead = (better & usable[None]).sum(dim=1)
    return 1 + torch.where(usable, ahead, usable.sum(dim=0))


def min_max(merit: Tensor) -> Tensor:
    """Each column of `merit` `[N, M]` scaled to 0..1; all 0 where the column is constant, 0 where unusable."""
    usable = merit.isfinite()
    low = merit.masked_fill(~usable, torch.inf).amin(dim=0)
    span = merit.masked_fill(~usable, -torch.inf).amax(dim=0) - low
    scaled = (merit - low) / span
    return torch.where(usable & (span > 0), scaled, 0.0)
