"""PURE's losses: cross entropy of the next token over the answers, and the optional z-loss.

The head of 73728 rows is applied to the positions that count alone, some at a time and again in the backward pass:
whole logits of four conversations in float32 would take 10 GB, and their gradient as much.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .conversations import IGNORED

CHUNK = 2048
"""Positions whose logits are held together: 0.6 GB."""


def counted_positions(labels: Tensor, with_z_loss: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Which positions of a batch enter the losses, from labels `[B, T]`, equally long vectors:

    - indices into `[B T]`;
    - the label of the token after each, -100 where it is no target;
    - whether its *own* label is a target: the z-loss of the authors' code takes these, one off against the cross
      entropy, so the place before an answer is left out of it and the last token of the answer is in it.
    """
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    own = labels.flatten() != IGNORED
    rows = torch.nonzero((following != IGNORED) | own if with_z_loss else following != IGNORED)[:, 0]
    return rows, following[rows], own[rows]


def token_losses(
    hidden: Tensor, following: Tensor, own: Tensor, head: Callable[[Tensor], Tensor], chunk: int = CHUNK
) -> dict[str, Tensor]:
    """Losses of hidden states `[N, D]` with what `counted_positions` says of them.

    head: float32 logits `[n, vocabulary]` of hidden states `[n, D]`. Returns scalars: `cross_entropy`, the mean over
    all targets in nats; `z_loss`, the mean of squared log partition functions over positions with `own`; `accuracy`,
    the share of targets that have the largest logit, without gradient.
    """

    def sums(states: Tensor, targets: Tensor, in_z: Tensor) -> Tensor:
        logits = head(states)
        partition = logits.logsumexp(dim=-1)
        is_target = targets != IGNORED
        chosen = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
        entropy = torch.where(is_target, partition - chosen, 0.0).sum()
        z = torch.where(in_z, partition.square(), 0.0).sum()
        right = ((logits.detach().argmax(dim=-1) == targets) & is_target).sum()
        return torch.stack([entropy, z, right.to(entropy)])

    parts = zip(hidden.split(chunk), following.split(chunk), own.split(chunk), strict=True)
    total = sum((checkpoint(sums, *part, use_reentrant=False) for part in parts), hidden.new_zeros(3).float())
    targets = (following != IGNORED).sum().clamp(min=1)
    return {
        "cross_entropy": total[0] / targets,
        "z_loss": total[1] / own.sum().clamp(min=1),
        "accuracy": (total[2] / targets).detach(),
    }
