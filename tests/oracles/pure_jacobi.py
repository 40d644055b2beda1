"""Speculative Jacobi decoding as PURE's reference code does it; no graph runs it.

It differs from sequential decoding (the product's does not): images use the codes below 8192 only, one k serves a whole
window, the residual is filtered and tempered a second time, guidance acts wherever an image is open, and the
unconditional row starts at the prompt's last token and sees the text. One image at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from oracles.pure_slots import Slot, mask_slot, next_slot, slot_of
from realisr.models.pure import logits as stages
from realisr.models.pure.cache import KVCache
from realisr.models.pure.transformer import Chameleon
from realisr.models.pure.vocabulary import BOI, EOI, EOT, IMAGE_RANGES, image_ids


@dataclass(frozen=True)
class ReferenceRule:
    """Parameters of the reference's loop.

    interval: window sizes above 1 are used while the committed length, less the prompt's, is in [left, right).
    image_ranges: ids (ends excluded) an image slot allows.
    """

    sampling: stages.TokenSampling = field(default_factory=stages.TokenSampling)
    guidance_scale: float = 0.8
    text_top_k: int = 1
    window: int = 16
    interval: tuple[int, int] = (3, 4150)
    image_ranges: tuple[tuple[int, int], ...] = IMAGE_RANGES[:1]


class ReferenceDraws(Protocol):
    """Every random number of a run, in order."""

    def drafts(self, count: int) -> list[int]:
        """Fresh drafts, each in 0..16383."""
        ...

    def tokens(self, count: int) -> Tensor:
        """Uniform numbers to draw tokens with, float64 `[count]`."""
        ...

    def acceptance(self, size: int) -> Tensor:
        """Uniform numbers of a window, `[size]`; the first is unused."""
        ...


def window_slots(context: Sequence[int], size: int) -> list[Slot]:
    """What the next `size` tokens are if the grid of `context` simply goes on; EOI wins over a row's end."""
    slot, grid, n = next_slot(context)
    if grid is None:
        return [slot] * size
    return [Slot.END if n + j == grid.length else slot_of(grid, n + j) for j in range(size)]


def window_distribution(
    logits: Tensor, context: Sequence[int], rule: ReferenceRule
) -> tuple[Tensor, float | None, int, Tensor]:
    """Grid, top-k with one k for all positions, temperature, softmax on guided logits `[L, V]`.

    Returns probabilities `[L, V]`, the mean entropy (None in text), k, and the entropies `[L]`.
    """
    slots = window_slots(context, logits.shape[0])
    masked = torch.stack([mask_slot(row, slot, rule.image_ranges) for row, slot in zip(logits, slots, strict=True)])
    entropies = stages.entropy(masked)
    mean = None if slots[0] is Slot.TEXT else entropies.mean()
    k = torch.tensor(rule.text_top_k) if mean is None else rule.sampling.k(mean)
    limit = max(rule.text_top_k, rule.sampling.largest_k)
    kept = stages.keep_top_k(masked, k.expand(logits.shape[0]), limit)
    p = stages.probabilities(kept, rule.sampling.temperature)
    return p, None if mean is None else float(mean), int(k), entropies


def residual_logits(target: Tensor, draft: Tensor) -> Tensor:
    return (target - draft).clamp(min=0).log()


def accepted_drafts(drafts: Tensor, draft_p: Tensor, target_p: Tensor, uniforms: Tensor) -> Tensor:
    """Which drafts stand, bool `[L - 1]`, each judged alone.

    drafts, draft_p: of window places 1..L-1. target_p: distributions `[L - 1, V]` of the same places.
    uniforms: `[L - 1]`.
    """
    q, p = (x.gather(-1, drafts[:, None])[:, 0] for x in (target_p, draft_p))
    return uniforms < (q / p).clamp(max=1)


def leading_count(accepted: Tensor) -> int:
    return int(accepted.long().cumprod(dim=0).sum())


@dataclass
class Step:
    """One iteration: what was fed and where, its logits (conditional, unconditional), and what came of it."""

    ids: list[int]
    positions: Tensor
    logits: Tensor
    sampled: Tensor
    committed: list[int]
    entropy_k: tuple[float | None, int]
    draft_p: Tensor
    target_p: Tensor


@torch.no_grad()
def run(
    network: Chameleon, prompt: Sequence[int], draws: ReferenceDraws, rule: ReferenceRule, limit: int
) -> Iterator[Step]:
    """Iterations until the end of turn is committed or the sequence has `limit` tokens beyond the prompt."""
    start, ids = len(prompt), list(prompt)
    dtype = network.model.embed_tokens.weight.dtype
    capacity = start + limit + 2 * rule.window
    caches = [KVCache.allocate(network.config, 1, size, dtype) for size in (capacity, capacity - start + 1)]
    vocabulary = network.config.vocab_size
    all_images = image_ids()
    carry, carry_p, size = torch.zeros(0, dtype=torch.long), torch.zeros(0, vocabulary), 1
    while ids[-1] != EOT or len(ids) == start:
        if len(ids) - start >= limit:
            return
        carried = min(size - 1, len(carry))
        fresh = all_images[torch.tensor(draws.drafts(size - 1 - carried), dtype=torch.long)]
        drafts = torch.cat([carry[:carried], fresh])
        one_hot = torch.zeros(len(fresh), vocabulary).scatter(1, fresh[:, None], 1.0)
        draft_p = torch.cat([carry_p[:carried], one_hot])

        fed = [*(ids if len(ids) == start else ids[-1:]), *drafts.tolist()]
        logits, positions = forward(network, caches, fed, len(ids) - 1 + size, start, size)
        guided = sum(token == BOI for token in ids) != sum(token == EOI for token in ids)
        mixed = stages.guide(logits[0], logits[1], rule.guidance_scale) if guided else logits[0]
        target_p, mean, k, _ = window_distribution(mixed, ids, rule)
        tokens = stages.draw(target_p, draws.tokens(size))
        sampled = tokens.clone()

        stood = 0
        if size > 1:
            stood = leading_count(accepted_drafts(drafts, draft_p, target_p[:-1], draws.acceptance(size)[1:]))
            tokens[:stood] = drafts[:stood]
            if stood < size - 1:
                left = residual_logits(target_p[stood], draft_p[stood])[None]
                again, *_ = window_distribution(left, [*ids, *tokens[:stood].tolist()], rule)
                tokens[stood] = stages.draw(again, draws.tokens(1))[0]
        committed = tokens[: stood + 1].tolist()
        carry, carry_p = tokens[stood + 1 :], target_p[stood + 1 :]
        yield Step(fed, positions, logits, sampled, committed, (mean, k), draft_p, target_p)
        left_end, right_end = rule.interval
        in_interval = left_end <= len(ids) - start < right_end
        size = min(rule.window, start + right_end - len(ids)) if in_interval else 1
        ids += committed


def forward(
    network: Chameleon, caches: list[KVCache], fed: list[int], stop: int, start: int, size: int
) -> tuple[Tensor, Tensor]:
    """Feed both rows up to index `stop`; the last `size` logits `[2, size, V]` and the conditional positions."""
    conditional = torch.arange(stop - len(fed), stop)
    seen = conditional >= start - 1
    ids = torch.tensor([fed])
    parts = []
    for cache, chosen, shift in ((caches[0], conditional >= 0, 0), (caches[1], seen, start - 1)):
        positions = conditional[chosen][None] - shift
        cache.set_span(int(positions.max()) + 1)
        hidden = network(ids[:, chosen], positions, [cache])
        parts.append(network.logits(hidden[:, -size:]))
    return torch.cat(parts), conditional
