"""Two judgements of one result: tightly against an oracle that runs here, and against the frozen reference numbers by
as much as last places move the oracle.

The frozen numbers come from another machine, whose maths library may round other last places. How much that can move
a result is measured, not guessed: the oracle runs again with numbers that are off by one last place at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from harness.straight_line_flux import one_last_place
from parity import golden

DRAWS = (1, 2)
"""Seeds of the last places that are moved."""

FACTOR = 3.0
"""How many measured spreads the frozen numbers may be away, besides the tight tolerance. A machine's float32 run of 16
random networks of PURE's kind is up to 1.4 spreads from the float64 one, so two machines may be 2.8 apart."""


def widened(tight: float, spread: float) -> float:
    return tight + FACTOR * spread


def moved(tensors: Mapping[str, Tensor], seed: int | None) -> dict[str, Tensor]:
    """Weights with one last place moved, or as they are."""
    return {name: tensor if seed is None else one_last_place(tensor, seed) for name, tensor in tensors.items()}


def distance(one: Tensor, other: Tensor) -> float:
    """The furthest apart that two elements are; 0 of none."""
    return (one.double() - other.double()).abs().max().item() if one.numel() else 0.0


@dataclass(frozen=True)
class Judge:
    exact: Mapping[str, Tensor]
    """What the oracle gives on this machine, by name."""

    spread: Mapping[str, float]
    """The furthest that any element of it moves when last places move."""

    def check(self, key: str, found: Tensor, frozen: Tensor | None, tight: float, what: str = "") -> None:
        """Both judgements of `found`, the oracle's `key`; only the first where there are no frozen numbers."""
        what = what or key
        golden.assert_within(found, self.exact[key], tight, f"{what}, against the oracle on this machine")
        if frozen is not None:
            golden.assert_within(found, frozen, self.tolerance(key, tight), f"{what}, against the frozen numbers")

    def tolerance(self, key: str, tight: float) -> float:
        """For the frozen numbers."""
        return widened(tight, self.spread[key])


def judge(oracle: Callable[[int | None], Mapping[str, Tensor]], draws: Sequence[int] = DRAWS) -> Judge:
    """Run the oracle as it is, then with last places moved. It is called with None or a seed of those."""
    exact: Mapping[str, Tensor] = oracle(None)
    spread: dict[str, float] = {}
    for seed in draws:
        for key, result in oracle(seed).items():
            spread[key] = max(spread.get(key, 0.0), distance(result, exact[key]))
    return Judge(exact, spread)
