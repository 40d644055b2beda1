"""From logits to a token (arXiv 2503.11073, section 3.3): guidance, entropy-based top-k, temperature, draw.

Every function works on the last axis of float32 logits, on any device, and never makes the host wait. Of an image slot
the logits of the image tokens alone are enough: all others are forbidden there, have probability 0, add 0 to the
entropy and cannot survive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ENTROPY_FLOOR = 1e-10
ENTROPY_RANGE = (0.0, 10.0)


def precise(device: torch.device) -> torch.dtype:
    """float64 where a device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class TokenSampling:
    """How image tokens are drawn. Raises ValueError for values that cannot be."""

    k_min: int = 1
    """Lower end of the rule k = k_min + (k_max - k_min) / (1 + exp(mu - H)), rounded, of the entropy H in nats. Never
    reached: at H = 0 the defaults give 14."""
    k_max: int = 2000
    """Upper end of the rule. Never reached either: at ln 16384, the largest entropy, the defaults give 1982."""
    mu: float = 5.0
    """Entropy in nats at which k is halfway. The reference's constant."""
    observed_mu: bool = False
    """Take for mu what the paper says it is, the standard deviation of the entropy observed during inference: here of
    the image tokens drawn before in the same image, and `mu` for the first two."""
    top_k: int | None = None
    """A fixed k instead of the rule, for ablation."""
    temperature: float = 0.9
    """Divides the surviving logits, above 0."""

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

    def k(self, entropy: Tensor, mu: Tensor | float | None = None) -> Tensor:
        """Tokens to keep at each entropy (nats), long, of the same shape. mu: in place of `self.mu`."""
        if self.top_k is not None:
            return torch.full_like(entropy, self.top_k, dtype=torch.long)
        share = torch.sigmoid(entropy.clamp(*ENTROPY_RANGE) - (self.mu if mu is None else mu))
        k = torch.round(self.k_min + (self.k_max - self.k_min) * share)
        # An entropy of NaN belongs to logits that are NaN; the count must still be one.
        return torch.nan_to_num(k, nan=1.0).clamp(self.k_min, self.k_max).long()


class ObservedEntropy:
    """The entropies seen so far of each image of a batch, as count, sum and sum of squares, `[B, 3]`."""

    def __init__(self, batch: int, device: torch.device):
        self.sums = torch.zeros(batch, 3, dtype=precise(device), device=device)

    def terms(self, entropies: Tensor, counted: Tensor | None) -> Tensor:
        """What each of `[B, T]` adds to the sums, `[B, T, 3]`; nothing where it is not counted (None: all are)."""
        h = entropies.to(self.sums.dtype)
        ones = torch.ones_like(h)
        terms = torch.stack([ones, h, h * h], dim=-1)
        return terms if counted is None else torch.where(counted[..., None], terms, 0)

    def add(self, entropies: Tensor, counted: Tensor | None = None) -> None:
        """Count those of `[B, T]` that `counted` marks, in place."""
        self.sums += self.terms(entropies, counted).sum(dim=1)

    def deviation(self, entropies: Tensor, counted: Tensor | None, first: float) -> Tensor:
        """Standard deviation of what came before each of `[B, T]`, the counted ones of these included; `[B, T]`.

        first: stands where fewer than two came before.
        """
        terms = self.terms(entropies, counted)
        # What comes before a place, not what it adds itself.
        count, total, squares = (self.sums[:, None] + terms.cumsum(dim=1) - terms).unbind(-1)
        some = count.clamp(min=1)
        variance = (squares / some - (total / some) ** 2).clamp(min=0)
        return torch.where(count < 2, first, variance.sqrt()).to(entropies.dtype)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on logits: scale * (c - u) + u. PURE's 0.8 mixes a fifth of the unconditional in."""
    return scale * (conditional - unconditional) + unconditional


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
    dtype = precise(p.device)
    total = p.to(dtype).cumsum(dim=-1)
    wanted = uniform.to(dtype).unsqueeze(-1) * total[..., -1:]
    return torch.searchsorted(total, wanted, right=True).squeeze(-1).clamp(max=p.shape[-1] - 1)


def distribution(
    logits: Tensor, sampling: TokenSampling, observed: ObservedEntropy | None = None, counted: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy-based top-k and temperature: (probabilities `[..., V]`, entropy `[...]`, k `[...]`) of guided logits.

    observed: with logits `[B, T, V]` of consecutive slots, mu is the deviation of the entropies before each slot; of
    these T, those that `counted` `[B, T]` marks.
    """
    h = entropy(logits)
    k = sampling.k(h, None if observed is None else observed.deviation(h, counted, sampling.mu))
    return probabilities(keep_top_k(logits, k, sampling.largest_k), sampling.temperature), h, k


def text_distribution(logits: Tensor, top_k: int, temperature: float) -> Tensor:
    """Probabilities of the next text token: a fixed top-k (1, greedy, in PURE), ties surviving."""
    k = torch.full(logits.shape[:-1], top_k, dtype=torch.long, device=logits.device)
    return probabilities(keep_top_k(logits, k, top_k), temperature)
