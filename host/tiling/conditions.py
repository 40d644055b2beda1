"""Conditions of a tile: what of the whole canvas's applies to it, and what a tile says for itself.

An entry of a CONDITIONING may carry other options for every tile (TileOptions): its own masked image, its own text.
All else an entry holds is the whole canvas's; what has the canvas's shape is cropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import comfy.conds
import comfy.utils
import torch
from comfy.controlnet import ControlBase
from comfy.model_base import BaseModel
from torch import Tensor

from ...models.tiles.grid import Box, Panes, TileGrid
from ...models.tiles.layout import CELL
from ..memory import BoundedMemo

TILE_OPTIONS = "realisr_tile_options"

TILE = "realisr_tile"
"""Argument by which a model's extra_conds learns that it is asked for a tile: the tile's number in its grid."""

MODEL_CONDS = "model_conds"
"""The host's own name for conditions in the form that models take."""

UNCROPPED = {"gligen": "GLIGEN boxes", "attention_mask_img_shape": "an attention bias between text and image"}
"""Options of an entry that speak of the whole canvas and cannot be cropped here."""

FEATHER = 8
"""Cells over which the host fades the inner borders of an area without a mask."""


class TileOptions(comfy.conds.CONDRegular):
    """What one entry of a CONDITIONING says differently for each tile of `grid`, in the order of its boxes.

    It travels among the entry's ready-made conditions (see with_tile_options): a model that works in tiles takes it
    out, any other one trips over it when it samples.

    options: per tile, names and values as in the entry itself; `cross_attn` holds text tokens `[b, N, E]`, and
    MODEL_CONDS ready-made conditions of the host. Tensors of the canvas's kind have a tile's size. A tile without
    options has what the canvas has. alike: all tiles' tensors have equal shapes, so that none needs to be looked at for
    it. Raises ValueError when there is not one for each tile.
    """

    def __init__(self, grid: TileGrid, options: Sequence[Mapping[str, Any]], alike: bool = False):
        if len(options) != len(grid):
            raise ValueError(f"There are options for {len(options)} tiles, the grid has {len(grid)}.")
        super().__init__(options)
        self.grid = grid
        self.alike = alike

    @property
    def options(self) -> Sequence[Mapping[str, Any]]:
        return self.cond

    def process_cond(self, *args, **kwargs):
        raise ValueError(
            "This conditioning was made for tiles. Sample it with the model output of the node that made it, not "
            "with the model that went in."
        )

    def signature(self, tile: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Tiles whose tensors have equal shapes can share a forward."""
        if self.alike:
            return ()
        options = self.options[tile]
        ready = {name: value.cond for name, value in options.get(MODEL_CONDS, {}).items()}
        tensors = {name: value for name, value in {**options, **ready}.items() if torch.is_tensor(value)}
        return tuple(sorted((name, tuple(value.shape)) for name, value in tensors.items()))


def with_tile_options(options: Mapping[str, Any], own: TileOptions) -> dict[str, Any]:
    """The options of an entry of a CONDITIONING, with what tiles say for themselves."""
    return {**options, MODEL_CONDS: {**options.get(MODEL_CONDS, {}), TILE_OPTIONS: own}}


def tile_options(options: Mapping[str, Any]) -> TileOptions | None:
    """What tiles say for themselves in an entry, as it travels and as the host prepares it."""
    return options.get(MODEL_CONDS, {}).get(TILE_OPTIONS)


@dataclass(frozen=True)
class TileBatch:
    """Tiles run in one forward, each for all `batch` items of the canvas: tile by tile, item by item."""

    first: int
    """Index of boxes[0] in the grid."""
    boxes: Sequence[Box]
    panes: Panes
    canvas: tuple[int, int]
    """(height, width) of the whole field."""
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


OwnConds: TypeAlias = Mapping[str, comfy.conds.CONDRegular]
"""What a model made of tiles' own options, by the names of its arguments."""


def tile_cond(
    cond: dict[str, Any],
    tiles: TileBatch,
    own: OwnConds,
    device: torch.device,
    cut_control: Callable[[ControlBase], ControlBase],
) -> dict[str, Any] | None:
    """An entry, as the host prepared it for the canvas, for a batch of tiles; None where its area meets none of them.

    own: see own_conds. device: where the tiles are sampled. cut_control: gives a ControlNet the tiles' part of its
    hint. Raises ValueError for options that cannot be cropped.
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
        out["mask"] = inside.to(device)
        if cond.get("mask") is not None:
            out["mask"] = out["mask"] * tiles.crop(cond["mask"])
    elif cond.get("mask") is not None:
        out["mask"] = tiles.crop(cond["mask"])
    if cond.get("control") is not None:
        out["control"] = cut_control(cond["control"])
    shared = {key: tiles.crop_cond(value) for key, value in canvas_conds(cond).items() if key not in own}
    return {**out, MODEL_CONDS: {**shared, **own}}


def canvas_conds(cond: dict[str, Any]) -> dict[str, comfy.conds.CONDRegular]:
    """What the host prepared of an entry for the canvas, without what is tiles' own."""
    return {key: value for key, value in cond[MODEL_CONDS].items() if key != TILE_OPTIONS}


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


def own_conds(model: BaseModel, cond: dict[str, Any], tiles: TileBatch, x: Tensor, prompt_type: str) -> OwnConds:
    """What the model makes of the tiles' own options, as it does of an entry for a canvas of their size.

    x: the tiles' crops `[tiles * batch, C, h, w]`. Empty for an entry without such options. What is made of the
    canvas's images is not in it, unless tiles have images of their own: the crop of what the host made of them is
    exact, whatever it knew besides the entry.
    """
    own = tile_options(cond)
    said = [] if own is None else own.options[tiles.first : tiles.first + len(tiles.boxes)]
    if not any(said):
        return {}
    per_tile = []
    for number, (box, noise, options) in enumerate(zip(tiles.boxes, x.chunk(len(said)), said, strict=True)):
        conds = model.extra_conds(
            **{
                # The host's models want it. What they make of it is spatial, and tiles take the crop of the canvas's.
                "latent_image": noise,
                **{name: tiles.crop_option(value, box) for name, value in cond.items()},
                **options,
                MODEL_CONDS: canvas_conds(cond),
                TILE: tiles.first + number,
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


class OwnCondsMemo:
    """What a model made of tiles' own options, kept from step to step within a budget of bytes.

    Nothing kept is used for an entry that has changed since, in whatever it says.
    """

    def __init__(self, budget: int):
        self.memo: BoundedMemo[tuple[dict[str, Any], OwnConds]] = BoundedMemo(budget)

    def own_conds(
        self, model: BaseModel, cond: dict[str, Any], tiles: TileBatch, x: Tensor, prompt_type: str
    ) -> OwnConds:
        """As the function of that name, made once."""
        if tile_options(cond) is None:
            return {}
        # The host's mark of an entry, which copies of it keep.
        key = (cond.get("uuid"), prompt_type, tiles.first, len(tiles.boxes), tiles.batch)
        said = flat(cond)
        found = self.memo.get(key)
        if found is not None and same_objects(found[0], said):
            return found[1]
        made = own_conds(model, cond, tiles, x, prompt_type)
        self.memo.put(key, (said, made), sum(nbytes(value.cond) for value in made.values()))
        return made


def flat(cond: dict[str, Any]) -> dict[Any, Any]:
    """All that an entry says, its ready-made conditions one by one."""
    ready = {(MODEL_CONDS, name): value for name, value in cond[MODEL_CONDS].items()}
    return {**{name: value for name, value in cond.items() if name != MODEL_CONDS}, **ready}


def same_objects(first: Mapping[Any, Any], second: Mapping[Any, Any]) -> bool:
    return first.keys() == second.keys() and all(value is second[name] for name, value in first.items())


def nbytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(nbytes(item) for item in value)
    return value.nbytes if torch.is_tensor(value) else 0
