"""What a run will take, known before it starts: tiles, forwards and memory, and whether it can be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import comfy.model_management
import torch

from .cost import CARDS, SHOWN_CARDS, Cost, is_described
from .memory import available_memory

log = logging.getLogger(__name__)

MANY_FORWARDS = 100_000
"""For one image: hours, even of a small model. Worth a word before it starts."""

MOST_FORWARDS = 1_000_000
"""For one image: nobody waits for as many; tiles that overlap by all but a pixel come to them."""

LEAST_SHARE = 2.0
"""How far the host's estimate of a forward may be above the whole memory of the device before a run is refused: it is
an estimate, and drivers lend some of the machine's memory."""

GB = 1e9

Level = Literal["fine", "tight", "impossible"]

MemoryOf = Callable[[Sequence[int]], float]
"""Bytes that the host thinks one forward on a latent of this shape takes: a model's memory_required."""


@dataclass(frozen=True)
class Stage:
    """Models that are on a device together, and what they need there beside their weights; in bytes."""

    name: str
    weights: int
    work: int
    """What the node asks the host for, beside the weights, when it loads them."""
    least: int = 0
    """What cannot be made less by offloading weights or by running less together."""
    peak: int | None = None
    """What is in use at once, beside the weights, counted on the network itself (cost.py); None where it is not."""
    cost: Cost | None = None
    """Of all that is done in the run at this stage; None where it is not counted."""

    @property
    def total(self) -> int:
        return self.weights + self.work


@dataclass(frozen=True)
class RunEstimate:
    """A run on one image."""

    node: str
    width: int
    """Of the result in pixels, as the height."""
    height: int
    tiles: int
    forwards: int
    """Of the network, each on a tile; of PURE each on one token of the squares that are drawn together."""
    stages: Sequence[Stage] = ()
    """Empty where the models are not known."""

    @property
    def memory(self) -> int:
        """Bytes of the largest stage, 0 for not known."""
        return max((stage.total for stage in self.stages), default=0)

    @property
    def peak(self) -> int:
        """Bytes in use on the device at the worst moment, weights and all; 0 where a stage is not counted."""
        counted = [stage.weights + stage.peak for stage in self.stages if stage.peak is not None]
        return max(counted, default=0) if len(counted) == len(self.stages) else 0

    @property
    def cost(self) -> Cost | None:
        """Of all stages; None where one is not counted."""
        costs = [stage.cost for stage in self.stages if stage.cost is not None]
        return sum(costs, Cost()) if costs and len(costs) == len(self.stages) else None

    @property
    def seconds(self) -> dict[str, float]:
        """By class of card, the least that its data sheet allows; empty where a stage is not counted."""
        cost = self.cost
        return {} if cost is None else {card.name: cost.seconds(card) for card in CARDS if card.name in SHOWN_CARDS}

    @property
    def least(self) -> int:
        return max((stage.least for stage in self.stages), default=0)


@dataclass(frozen=True)
class Verdict:
    """Whether a run can be."""

    level: Level
    reason: str = ""
    """A sentence for people; empty when all is well."""


def judge(estimate: RunEstimate, device: torch.device | None = None) -> Verdict:
    """What is to be said of a run before it starts. device: the host's own by default."""
    device = comfy.model_management.get_torch_device() if device is None else device
    total = int(comfy.model_management.get_total_memory(device))
    if estimate.forwards > MOST_FORWARDS:
        return Verdict(
            "impossible",
            f"{estimate.tiles:,} tiles come to {estimate.forwards:,} forwards for one image, and {MOST_FORWARDS:,} "
            "are the most. Lower the overlap or the steps, or choose larger tiles.",
        )
    if estimate.least > LEAST_SHARE * total:
        return Verdict(
            "impossible",
            f"One forward needs about {gigabytes(estimate.least)}, and this device has {gigabytes(total)} in all. "
            "Choose smaller tiles (tiling auto), or a smaller result.",
        )
    free = available_memory(device)
    if estimate.memory > free:
        return Verdict(
            "tight",
            f"It needs about {gigabytes(estimate.memory)}, and {gigabytes(free)} can be had. ComfyUI keeps a part of "
            "the weights elsewhere then, which is slow, or memory runs out.",
        )
    if estimate.forwards > MANY_FORWARDS:
        return Verdict(
            "tight", f"{estimate.tiles:,} tiles come to {estimate.forwards:,} forwards for one image, which takes long."
        )
    return Verdict("fine")


def require_possible(estimate: RunEstimate, device: torch.device | None = None) -> None:
    """Before a run: raises ValueError for one that cannot be, and says in the log what will be slow or tight."""
    verdict = judge(estimate, device)
    if verdict.level == "impossible":
        raise ValueError(f"{estimate.node}, {estimate.width}x{estimate.height} pixels: {verdict.reason}")
    if verdict.level == "tight":
        log.warning("RealISR: %s, %dx%d: %s", estimate.node, estimate.width, estimate.height, verdict.reason)


def gigabytes(count: float) -> str:
    return f"{count / GB:,.1f} GB" if count < 10 * GB else f"{count / GB:,.0f} GB"


def sampling_stage(memory_of: MemoryOf, weights: int, shape: Sequence[int]) -> Stage:
    """The host's own question before it samples: `shape` `[B, C, h, w]` of what the model sees at once.

    It asks for two conditions and can do with one.
    """
    batch, *rest = shape
    return Stage("sampling", weights, int(memory_of([2 * batch, *rest])), int(memory_of([batch, *rest])))


def vae_stages(vae, width: int, height: int, vae_tile: int = 0) -> list[Stage]:
    """Encoding and decoding of a picture with a VAE, in the tiles that `vae_tile_for` would choose."""
    from .forwards import vae_forward
    from .images import vae_tile_for

    cell = max(1, vae.spacial_compression_encode())
    frames = (1,) if vae.latent_dim == 3 else ()
    stages = []
    for name, used, channels, unit in (
        ("encoding", vae.memory_used_encode, 3, 1),
        ("decoding", vae.memory_used_decode, vae.latent_channels, cell),
    ):

        def shape(high: int, wide: int, channels: int = channels, unit: int = unit) -> tuple[int, ...]:
            return 1, channels, *frames, -(-high // unit), -(-wide // unit)

        tile = vae_tile_for(vae, shape(height, width), used, vae_tile)
        sides = (min(height, tile), min(width, tile)) if tile else (height, width)
        stage = Stage(name, int(vae.model_size()), int(used(shape(*sides), vae.vae_dtype)))
        if is_described(vae.first_stage_model):
            cost = sum(
                (vae_forward(vae, name, *part).times(count) for part, count in vae_parts(height, width, tile)), Cost()
            )
            stage = replace(stage, peak=cost.peak, cost=cost)
        stages.append(stage)
    return stages


def vae_parts(height: int, width: int, tile: int) -> list[tuple[tuple[int, int], float]]:
    """What a VAE is run on: sides in pixels, and how often. The host averages three passes in tiles of three shapes."""
    if not tile:
        return [((height, width), 1)]
    parts = []
    for wide, high in ((tile, tile), (tile // 2, tile * 2), (tile * 2, tile // 2)):
        sides = min(high, height), min(wide, width)
        # Of the area, since the last tile of a row is narrower.
        parts.append((sides, covered(height, high, tile // 8) * covered(width, wide, tile // 8)))
    return parts


def covered(side: int, tile: int, overlap: int) -> float:
    """How many whole tiles' lengths the tiles along a side come to."""
    if side <= tile:
        return 1.0
    starts = range(0, side - overlap, tile - overlap)
    return sum(min(tile, side - start) for start in starts) / tile
