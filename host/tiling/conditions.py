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

from ...models.tiles.grid import Box, Panes, TileGrid
from ...models.tiles.layout import CELL

TILE_OPTIONS = "realisr_tile_options"

MODEL_CONDS = "model_conds"
"""The host's own name for conditions in the form that models take."""

UNCROPPED = {"gligen": "GLIGEN boxes", "attention_mask_img_shape": "an attention bias between text and image"}
"""Options of an entry that speak of the whole canvas and cannot be cropped here."""

FEATHER = 8
"""Cells over which the host fades the inner borders of an area without a mask."""


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

    def crop_option(self, value: Any, box: Box) -> Any:
        """One tile's part of an option of an entry: of images as large as the canvas, in cells or in pixels."""
        if isinstance(value, list):
            return [self.crop_option(item, box) for item in value]
        if not is_image(value):
            return value
        scale = value.shape[-2] // self.canvas[0]
        fits = tuple(value.shape[-2:]) == tuple(side * scale for side in self.canvas) and scale in (1, CELL)
        return self.panes.crop(value, box, scale) if fits else value

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
) -> dict[str, Any] | None:
    """An entry, as the host prepared it for the canvas, for a batch of tiles; None where its area meets none of them.

    model: the host's BaseModel. x: the tiles' crops `[tiles * batch, C, h, w]`. cut_control: gives a ControlNet the
    tiles' part of its hint. Raises ValueError for options that cannot be cropped.
    """
    for key, what in UNCROPPED.items():
        if cond.get(key) is not None:
            raise ValueError(f"The conditioning carries {what}, which covers the whole canvas and cannot be tiled.")
    out = dict(cond)
    if cond.get("area") is not None:
        inside = tiles.crop(area_weight(cond, tiles.canvas))
        if not inside.any():
            return None
        out.pop("area")
        out["mask"] = inside.to(x.device)
        if cond.get("mask") is not None:
            out["mask"] = out["mask"] * tiles.crop(cond["mask"])
    elif cond.get("mask") is not None:
        out["mask"] = tiles.crop(cond["mask"])
    if cond.get("control") is not None:
        out["control"] = cut_control(cond["control"])
    own = own_conds(model, cond, tiles, x, prompt_type)
    shared = {key: tiles.crop_cond(value) for key, value in cond[MODEL_CONDS].items() if key not in own}
    return {**out, MODEL_CONDS: shared | own}


def area_weight(cond: dict[str, Any], canvas: tuple[int, int]) -> Tensor:
    """How much an entry limited to an area counts in each cell, `[1, H, W]`, as the host has it.

    A tile may hold any part of an area, so that the model runs on the whole tile and the area only weighs the result.
    """
    area = list(cond["area"])
    sizes, starts = area[: len(area) // 2][-2:], area[-2:]
    rows, columns = (
        side_weight(min(size, whole - start), start, whole, fade=cond.get("mask") is None)
        for size, start, whole in zip(sizes, starts, canvas, strict=True)
    )
    return (rows[:, None] * columns[None, :])[None]


def side_weight(size: int, start: int, whole: int, fade: bool) -> Tensor:
    """Weight along one side of the canvas: 1 within [start, start + size), 0 outside, faded at inner borders."""
    inside = torch.ones(size)
    steps = min(FEATHER, size // 4) if fade else 0
    ramp = torch.arange(1, steps + 1) / max(steps, 1)
    if start > 0:
        inside[:steps] *= ramp
    if start + size < whole:
        inside[size - steps :] *= ramp.flip(0)
    weight = torch.zeros(whole)
    weight[start : start + size] = inside
    return weight


def is_image(value: Any) -> bool:
    """Whether an option is spatial: latents and masks, or a list of them; text has fewer dimensions."""
    if isinstance(value, list | tuple):
        return any(is_image(item) for item in value)
    return torch.is_tensor(value) and value.ndim > 3


def is_spatial(cond: comfy.conds.CONDRegular) -> bool:
    return isinstance(cond, comfy.conds.CONDNoiseShape | comfy.conds.CONDList)


def own_conds(
    model, cond: dict[str, Any], tiles: TileBatch, x: Tensor, prompt_type: str
) -> dict[str, comfy.conds.CONDRegular]:
    """What the model makes of the tiles' own options, as it does of an entry for a canvas of their size.

    Empty for an entry without such options. What is made of the canvas's images is not in it, unless tiles have
    images of their own: the crop of what the host made of them is exact, whatever it knew besides the entry.
    """
    own: TileOptions | None = cond.get(TILE_OPTIONS)
    if own is None:
        return {}
    said = own.options[tiles.first : tiles.first + len(tiles.boxes)]
    per_tile = []
    for box, noise, options in zip(tiles.boxes, x.chunk(len(tiles.boxes)), said, strict=True):
        conds = model.extra_conds(
            **{
                # Inpainting models make something of it, which is not kept here.
                "latent_image": noise,
                **{name: tiles.crop_option(value, box) for name, value in cond.items()},
                **options,
                "noise": noise,
                "device": x.device,
                "width": noise.shape[-1] * CELL,
                "height": noise.shape[-2] * CELL,
                "prompt_type": prompt_type,
            }
        )
        conds = conds | options.get(MODEL_CONDS, {})
        per_tile.append({key: value.process_cond(batch_size=tiles.batch, area=None) for key, value in conds.items()})
    images = any(is_image(value) for value in said[0].values())
    cropped = set() if images else {key for key, value in cond[MODEL_CONDS].items() if is_spatial(value)}
    first, *others = per_tile
    return {
        key: value._copy_with(value.concat([other[key] for other in others]))
        for key, value in first.items()
        if key not in cropped or key in said[0].get(MODEL_CONDS, {})
    }
