"""How much each cell of a tile counts where tiles overlap."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Device: TypeAlias = torch.device | str | None

Weights = Literal["uniform", "gaussian", "linear", "narrow gaussian"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)

VARIANCE: dict[str, float] = {"gaussian": 0.3**2, "narrow gaussian": 0.01}
"""Of a bell along each axis, in units of the squared tile side. The narrow one is VOSR's."""


def gaussian_weight(
    height: int, width: int, device: Device = None, variance: float = VARIANCE["narrow gaussian"]
) -> Tensor:
    """A bell in the middle of a tile, `[1, 1, height, width]` in float32. variance: in squared tile sides.

    The narrow one is about 5e-6 at the middle of an edge and 3e-11 in a corner: accumulate in float32, half
    precision underflows.
    """

    def profile(size: int) -> Tensor:
        offset = (torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2) / size
        return torch.exp(-(offset**2) / (2 * variance))

    return (profile(height)[:, None] * profile(width)[None, :])[None, None]


def tile_weight(kind: Weights, height: int, width: int, device: Device = None) -> Tensor:
    """Weight of a tile's predictions, `[1, 1, height, width]` in float32, positive everywhere, not normalised.

    uniform: 1. gaussian, narrow gaussian: a bell of standard deviation 0.3 or 0.1 tile sides along each axis. linear:
    along each axis the number of cells to the nearer border, border included. Raises ValueError for another kind.
    """
    if kind == "uniform":
        return torch.ones(1, 1, height, width, device=device)
    if kind in VARIANCE:
        return gaussian_weight(height, width, device, VARIANCE[kind])
    if kind == "linear":

        def tent(size: int) -> Tensor:
            cells = torch.arange(1, size + 1, dtype=torch.float32, device=device)
            return torch.minimum(cells, cells.flip(0))

        return (tent(height)[:, None] * tent(width)[None, :])[None, None]
    raise ValueError(f"Tile weights are {', '.join(WEIGHTS)}, got {kind!r}.")
