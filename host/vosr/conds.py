"""VOSR's conditioning as the host carries it: what travels on a CONDITIONING wire, and what a run makes of it.

A VOSR CONDITIONING is one entry `[features, options]`:

* features `[B, M, E]`; for a tiled run the tiles' features one after another, `[B, tiles * M, E]`. A single
  token stands for any number of equal ones (the weak branch's zeros), whatever the tile.
* options: `concat_latent_image`, the LQ latent as the VAE encoded it; `vosr_lq_strength`, w of the weak branch
  (1 for the full one); `vosr_tiles`, a TileGrid over the latent, or absent.
"""

from __future__ import annotations

import comfy.conds
import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...models.tiles.grid import TileGrid
from ...models.vosr.dit import ContextKV, VOSRDiT
from ..progress import TileProgress

TOKENS_PER_FORWARD = 1024
"""Tiles smaller than this many tokens share a forward: small tiles alone leave the hardware idle."""


def tiles_per_forward(grid: TileGrid, patch: int) -> int:
    tokens = (grid.tile_height // patch) * (grid.tile_width // patch)
    return max(1, min(len(grid), TOKENS_PER_FORWARD // tokens))


class TilesCond(comfy.conds.CONDConstant):
    """The tile grid of a run and how far it has come; conditions with equal grids run in one batch.

    Its size, for the host's memory estimate, is that of one forward.
    """

    def __init__(self, cond: TileGrid, patch: int, progress: TileProgress):
        super().__init__(cond)
        self.patch = patch
        self.progress = progress

    @property
    def grid(self) -> TileGrid:
        return self.cond

    def _copy_with(self, cond: TileGrid) -> TilesCond:
        return TilesCond(cond, self.patch, self.progress)

    def concat(self, others: list[TilesCond]) -> TilesCond:
        return self

    def size(self) -> list[int]:
        return tiles_forward_shape(self.grid, self.patch)


def tiles_forward_shape(grid: TileGrid, patch: int) -> list[int]:
    """`[tiles in one forward, 1, tile height, tile width]`."""
    return [tiles_per_forward(grid, patch), 1, grid.tile_height, grid.tile_width]


class ContextMemo:
    """Cross-attention keys and values of one conditioning, kept for the length of one sampling run.

    Bounded by `budget` bytes: past it, further tiles' contexts are computed at every step, so that memory does
    not grow with the image.
    """

    def __init__(self, budget: int):
        self.budget = budget
        self.entries: dict[int, ContextKV] = {}

    def get(self, tile: int) -> ContextKV | None:
        return self.entries.get(tile)

    def put(self, tile: int, context: ContextKV) -> None:
        if context.nbytes <= self.budget:
            self.budget -= context.nbytes
            self.entries[tile] = context


class VisionCond(comfy.conds.CONDRegular):
    """One branch's vision features, `[B, tiles * M, E]` (empty for a network without cross-attention).

    Unlike the host's own conditions, several are not concatenated but listed: each keeps its memo and its number
    of tokens.
    """

    def __init__(self, cond: Tensor, tiles: int, memo: ContextMemo, batch: int = 1):
        super().__init__(cond)
        self.tiles = tiles
        self.memo = memo
        self.batch = batch

    def _copy_with(self, cond: Tensor) -> VisionCond:
        """For other items than the memo's: a tiler's batch of crops, say."""
        return VisionCond(cond, self.tiles, ContextMemo(0), self.batch)

    def process_cond(self, batch_size: int, **kwargs) -> VisionCond:
        return VisionCond(self.cond, self.tiles, self.memo, batch_size)

    def can_concat(self, other: comfy.conds.CONDRegular) -> bool:
        return isinstance(other, VisionCond) and other.tiles == self.tiles

    def concat(self, others: list[VisionCond]) -> list[VisionCond]:
        return [self, *others]

    def size(self) -> list[int]:
        return list(self.cond.shape)

    def tile_features(self, tile: int) -> Tensor:
        """Features of one tile, `[b, M, E]`."""
        tokens = self.cond.shape[1]
        if tokens == 1:
            return self.cond
        per_tile = tokens // self.tiles
        return self.cond[:, tile * per_tile : (tile + 1) * per_tile]

    def context(self, network: VOSRDiT, tile: int, device: torch.device, dtype: torch.dtype, keep: bool) -> ContextKV:
        """Keys and values for `batch` items; remembered when `keep`."""
        if self.cond.shape[1] == 1:
            tile = 0
        found = self.memo.get(tile) if keep else None
        if found is None:
            features = comfy.model_management.cast_to_device(self.tile_features(tile), device, dtype)
            found = network.encode_context(comfy.utils.repeat_to_batch_size(features, self.batch))
            if keep:
                self.memo.put(tile, found)
        return found


def check_tokens(features: Tensor, tiles: int) -> None:
    if features.shape[1] > 1 and features.shape[1] % tiles:
        raise ValueError(
            f"VOSR conditioning has {features.shape[1]} feature tokens, which {tiles} tiles cannot share evenly. "
            "Use the full and weak outputs of VOSR Conditioning unchanged."
        )
