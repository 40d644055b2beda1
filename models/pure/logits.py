"""From logits to a token (arXiv 2503.11073, section 3.3): guidance, grid, entropy-based top-k, temperature, draw.

Every function works on the last axis of float32 logits, on any device, and never makes the host wait. Image slots may
be given all logits or those of the image tokens alone: tokens that are masked have probability 0, add 0 to the entropy
and cannot survive, so the results are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .grid import Slot
from .vocabulary import IMAGE_RANGES

ENTROPY_FLOOR = 1e-10
ENTROPY_RANGE = (0.0, 10.0)


@dataclass(frozen=True)
class Sampling:
    """How image tokens are drawn.

    k_min, k_max, mu: entropy H (nats) becomes k = k_min + (k_max - k_min) / (1 + exp(mu - H)), rounded. top_k: a fixed
    k instead, for ablation. temperature: divides the surviving logits, above 0.
    """

    k_min: int = 1
    k_max: int = 2000
    mu: float = 5.0
    top_k: int | None = None
    temperature: float = 0.9

    def __post_init__(self) -> None:
        if not 1 <= self.k_min <= self.k_max:
            raise ValueError(f"k_min {self.k_min} and k_max {self.k_max}: k_min must be 1 or more, k_max not below it")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: it must be at least 1")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"the temperature is {self.temperature}: it must be above 0 and finite")

    @property
    def largest_k(self) -> int:
        return self.k_max if self.top_k is None else self.top_k

    def k(self, entropy: Tensor) -> Tensor:
        """Tokens to keep at each entropy (nats), long, of the same shape."""
        if self.top_k is not None:
            return torch.full_like(entropy, self.top_k, dtype=torch.long)
        share = torch.sigmoid(entropy.clamp(*ENTROPY_RANGE) - self.mu)
        k = torch.round(self.k_min + (self.k_max - self.k_min) * share)
        # An entropy of NaN belongs to logits that are NaN; the count must still be one.
        return torch.nan_to_num(k, nan=1.0).clamp(self.k_min, self.k_max).long()


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on logits: scale * (c - u) + u. PURE's 0.8 mixes a fifth of the unconditional in."""
    return scale * (conditional - unconditional) + unconditional


def mask_slot(logits: Tensor, slot: Slot, ranges: tuple[tuple[int, int], ...] = IMAGE_RANGES) -> Tensor:
    """Logits of the whole vocabulary with -inf where a slot forbids a token; text and size slots allow all.

    ranges: ids (ends excluded) that an image slot allows.
    """
    if slot in (Slot.TEXT, Slot.SIZE):
        return logits
    masked = torch.full_like(logits, -torch.inf)
    if slot.forced is not None:
        masked[..., slot.forced] = 0.0
        return masked
    for start, end in ranges:
        masked[..., start:end] = logits[..., start:end]
    return masked


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax in nats, `[...]` of logits `[..., V]`: -sum p ln(p + 1e-10)."""
    p = torch.softmax(logits, dim=-1)
    return -(p * torch.log(p + ENTROPY_FLOOR)).sum(dim=-1)


def keep_top_k(logits: Tensor, k: Tensor, limit: int) -> Tensor:
    """Set to -inf what is below the k-th largest; ties with it survive.

    k: `[...]` long, each at most `limit`, which is a plain number so that nothing has to wait for k.
    """
    largest = logits.topk(min(limit, logits.shape[-1]), dim=-1).values
    cut = largest.gather(-1, (k.clamp(max=largest.shape[-1]) - 1).unsqueeze(-1))
    return logits.masked_fill(logits < cut, -torch.inf)


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Softmax at a temperature. The largest logit is taken off first, so no temperature overflows."""
    return torch.softmax((logits - logits.amax(dim=-1, keepdim=True)) / temperature, dim=-1)


def draw(p: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF draw: the first index whose cumulative probability exceeds uniform * total.

    p: `[..., V]`, not necessarily normalised. uniform: `[...]` in 0..1. In float64 where the device has it. Always a
    valid index, even of NaN.
    """
    precise = torch.float32 if p.device.type == "mps" else torch.float64
    total = p.to(precise).cumsum(dim=-1)
    wanted = uniform.to(precise).unsqueeze(-1) * total[..., -1:]
    return torch.searchsorted(total, wanted, right=True).squeeze(-1).clamp(max=p.shape[-1] - 1)


def distribution(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy-based top-k and temperature: (probabilities `[..., V]`, entropy `[...]`, k `[...]`) of masked logits."""
    h = entropy(logits)
    k = sampling.k(h)
    return probabilities(keep_top_k(logits, k, sampling.largest_k), sampling.temperature), h, k


def text_distribution(logits: Tensor, top_k: int, temperature: float) -> Tensor:
    """Probabilities of the next text token: a fixed top-k (1, greedy, in PURE), ties surviving."""
    k = torch.full(logits.shape[:-1], top_k, dtype=torch.long, device=logits.device)
    return probabilities(keep_top_k(logits, k, top_k), temperature)
