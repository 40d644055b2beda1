"""The test of speculative Jacobi decoding: which guesses of a window stand, and what follows them.

A draft d, drawn from p, stands with probability min(1, q(d) / p(d)), q being the distribution it should have been drawn
from; at the first that falls a token is drawn from the normalised residual max(q - p, 0). So what is committed follows
q exactly, as when drawing one by one (speculative sampling, arXiv 2302.01318).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import logits as stages
from .grid import Grid
from .vocabulary import EOI, NL


def verify(
    drafts: Tensor, draft_p: Tensor, target: Tensor, free: Tensor, accept_u: Tensor, final_u: Tensor
) -> tuple[Tensor, Tensor]:
    """How many of the drafts stand, `[B]`, and the token that follows those, `[B]`.

    drafts: `[B, n]`, drawn from draft_p `[B, n, V]`. target: distributions `[B, n + 1, V]` given what stands before.
    free: `[B, n]`, False where a slot can take one token only, which then stands. accept_u, final_u: uniform numbers
    `[B, n]` and `[B]`.
    """
    ratio = probability_of(target[:, :-1], drafts) / probability_of(draft_p, drafts)
    stood = leading((accept_u < ratio) | ~free)
    rows = torch.arange(len(stood), device=stood.device)
    rejected_p = draft_p[rows, stood.clamp(max=drafts.shape[1] - 1)]
    none_rejected = (stood == drafts.shape[1])[:, None]
    return stood, stages.draw(residual(target[rows, stood], rejected_p.masked_fill(none_rejected, 0)), final_u)


def probability_of(p: Tensor, index: Tensor) -> Tensor:
    """`[B, n]` probabilities that `[B, n, V]` gives to `[B, n]` indices."""
    return p.gather(-1, index[..., None])[..., 0]


def leading(accepted: Tensor) -> Tensor:
    """How many of `[B, n]` are True before the first False."""
    return accepted.long().cumprod(dim=1).sum(dim=1)


def residual(target: Tensor, draft: Tensor) -> Tensor:
    """max(q - p, 0) of `[..., V]`, not normalised; q itself where rounding leaves nothing."""
    left = (target - draft).clamp(min=0)
    return torch.where(left.sum(dim=-1, keepdim=True) > 0, left, target)


class SlotTables:
    """Per slot n after the sizes (index n, also some beyond the end): forced token or -1, and image token number."""

    def __init__(self, grid: Grid, extra: int, device: torch.device):
        n = torch.arange(grid.length + extra + 1, device=device)
        ends_row = n % (grid.columns + 1) == 0
        self.forced = torch.where(n >= grid.length, EOI, torch.where(ends_row, NL, -1))
        number = n - n // (grid.columns + 1) - 1
        self.token = torch.where(self.forced >= 0, grid.tokens, number)
        """Slots without an image token point to a column behind the last."""
