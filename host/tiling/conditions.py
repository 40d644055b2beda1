"""Conditions of a tile: what of the whole canvas's applies to it, and what a tile says for itself.

An entry of a CONDITIONING may carry, under TILE_OPTIONS, other options for every tile: its own masked image, its own
text. All else an entry holds is the whole canvas's; what has the canvas's shape is cropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.utils
import torch
from comfy.controlnet import ControlBase
from torch import Tensor

from ...models.tiling import Box, Panes, TileGrid

TILE_OPTIONS = "realisr_tile_options"

MODEL_CONDS = "model_conds"
"""The host's own name for conditions in the form that models take."""

UNCROPPED = {"gligen": "GLIGEN boxes"}
"""Options of an entry that speak of the whole canvas and cannot be cropped here."""


class NeedsTiledModel:
    """Stands in for a canvas-wide masked image where every tile has one: only a tiled model can read those."""

    def to(self, *args, **kwargs):
        raise ValueError(
            "This conditioning was made for tiles. Sample it with the model output of the node that made it, not "
            "with the model that went in."
        )


@dataclass(frozen=True, eq=False)
class TileOptions:
    """What one entry of a CONDITIONING says differently for each tile of `grid`, in the order of its boxes.

    options: per tile, names and values as in the entry itself; `cross_attn` holds text tokens `[b, N, E]`, and
    MODEL_CONDS ready-made conditions of the host. Tensors of the canvas's kind have a tile's size. Raises ValueError
    when there is not one for each tile.
    """

    grid: TileGrid
    options: Sequence[Mapping[str, Any]]

    def __post_init__(self):
        if len(self.options) != len(self.grid):
            raise ValueError(f"There are options for {len(self.options)} tiles, the grid has {len(self.grid)}.")

    def signature(self, tile: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Tiles whose tensors have equal shapes can share a forward."""
        options = self.options[tile]
        ready = {name: value.cond for name, value in options.get(MODEL_CONDS, {}).items()}
        tensors = {name: value for name, value in {**options, **ready}.items() if torch.is_tensor(value)}
        return tuple(sorted((name, tuple(value.shape)) for name, value in tensors.items()))


@dataclass(frozen=True)
class TileBatch:
    """Tiles run in one forward, each for all `batch` items of the canvas: tile by tile, item by item.

    first: index of boxes[0] in the grid. canvas: (height, width) of the whole field.
    """

    first: int
    boxes: Sequence[Box]
    panes: Panes
    canvas: tuple[int, int]
    batch: int

    @property
    def items(self) -> int:
        return len(self.boxes) * self.batch

    def has_canvas(self, field: Tensor) -> bool:
        return field.ndim > 2 and tuple(field.shape[-2:]) == self.canvas

    def crop(self, field: Tensor) -> Tensor:
        """`[b, ..., H, W]` -> `[tiles * batch, ..., h, w]`."""
        field = comfy.utils.repeat_to_batch_size(field, self.batch)
        return torch.cat([self.panes.crop(field, box) for box in self.boxes])

    def spread(self, value: Tensor) -> Tensor:
        """`[b, ...]` of all tiles alike -> `[tiles * batch, ...]`."""
        return comfy.utils.repeat_to_batch_size(comfy.utils.repeat_to_batch_size(value, self.batch), self.items)

    def crop_cond(self, cond: comfy.conds.CONDRegular) -> comfy.conds.CONDRegular:
        """The tiles' part of one of the host's conditions."""
        if isinstance(cond, comfy.conds.CONDNoiseShape):
            return cond._copy_with(self.crop(cond.cond))
        if isinstance(cond, comfy.conds.CONDList):
            return cond._copy_with([self.crop(c) if self.has_canvas(c) else self.spread(c) for c in cond.cond])
        if isinstance(cond, comfy.conds.CONDConstant) or not torch.is_tensor(cond.cond):
            return cond
        return cond._copy_with(self.spread(cond.cond))


def tile_cond(
    model,
    cond: dict[str, Any],
    tiles: TileBatch,
    x: Tensor,
    prompt_type: str,
    cut_control: Callable[[ControlBase], ControlBase],
) -> dict[str, Any]:
    """An entry, as the host prepared it for the canvas, for a batch of tiles.

    model: the host's BaseModel. x: the tiles' crops `[tiles * batch, C, h, w]`. cut_control: gives a ControlNet the
    tiles' part of its hint. Raises ValueError for options that cannot be cropped.
    """
    for key, what in UNCROPPED.items():
        if cond.get(key) is not None:
            raise ValueError(f"The conditioning carries {what}, which covers the whole canvas and cannot be tiled.")
    own: TileOptions | None = cond.get(TILE_OPTIONS)
    made = {} if own is None else own_conds(model, cond, own, tiles, x, prompt_type)
    shared = {key: tiles.crop_cond(value) for key, value in cond[MODEL_CONDS].items() if key not in made}
    out = {**cond, MODEL_CONDS: shared | made}
    if cond.get("control") is not None:
        out["control"] = cut_control(cond["control"])
    mask = area_mask(cond, x, tiles.canvas)
    if mask is not None:
        out.pop("area", None)
        out["mask"] = tiles.crop(mask)
    return out


def area_mask(cond: dict[str, Any], x: Tensor, canvas: tuple[int, int]) -> Tensor | None:
    """Where an entry applies, `[b, H, W]`: its mask, limited to its area; None for everywhere.

    A tile may hold any part of an area, so that the model runs on the whole tile and the area only weighs the result.
    """
    mask, area = cond.get("mask"), cond.get("area")
    if area is None:
        return mask
    height, width, top, left = area
    inside = torch.zeros(1, *canvas, device=x.device)
    Box(top, left, height, width).crop(inside).fill_(1.0)
    return inside if mask is None else mask * inside


def own_conds(
    model, cond: dict[str, Any], own: TileOptions, tiles: TileBatch, x: Tensor, prompt_type: str
) -> dict[str, comfy.conds.CONDRegular]:
    """What the model makes of the tiles' own options, as it does of an entry for a canvas of their size."""
    per_tile = []
    for index, noise in enumerate(x.chunk(len(tiles.boxes))):
        options = {
            **cond,
            **own.options[tiles.first + index],
            "noise": noise,
            "device": x.device,
            "width": noise.shape[-1] * 8,
            "height": noise.shape[-2] * 8,
            "prompt_type": prompt_type,
        }
        conds = model.extra_conds(**options) | own.options[tiles.first + index].get(MODEL_CONDS, {})
        per_tile.append({key: value.process_cond(batch_size=tiles.batch, area=None) for key, value in conds.items()})
    first, *others = per_tile
    joined = {}
    for key, value in first.items():
        whole = value.concat([other[key] for other in others])
        joined[key] = value._copy_with(whole)
    return joined
