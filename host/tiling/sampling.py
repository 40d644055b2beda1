"""Tiles merged at every evaluation of a model (MultiDiffusion), under any sampler and guider of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...models.tiles.grid import ONE_PANE, Box, Panes, TileGrid
from ...models.tiles.merge import merge_tiles
from ...models.tiles.weights import Weights, tile_weight
from ..progress import TileProgress
from .conditions import MODEL_CONDS, TILE_OPTIONS, NeedsTiledModel, TileBatch, own_conds, tile_cond
from .controls import TileControls

KEY = "realisr_tiling"

CELLS_PER_FORWARD = 128 * 128
"""Latent cells beyond which a larger forward is no faster per cell, only larger: an image of 1024 x 1024 pixels."""

MEMORY_MARGIN = 1.5
"""Of the host's estimate of a forward, as the host itself leaves it when it batches conditions."""

POSITIONED = (comfy.model_base.Flux, comfy.model_base.Flux2, comfy.model_base.Lumina2)
"""Image models whose rotary positions the host can shift. Not their subclasses: some have positions of their own."""

PROMPT_TYPES = ("positive", "negative")


@dataclass(frozen=True)
class Tiling:
    """Makes a MODEL predict tile by tile.

    grid: tiles over a pane of the latent, in latent cells. panes: how panes make up the latent. weights: of the mean
    where tiles overlap. per_forward: tiles run together; 0 for as many as free memory holds, up to CELLS_PER_FORWARD.
    own_options: every condition must bring its TileOptions. true_positions: tiles' rotary positions are those they
    have in the canvas, not counted from 0; they then run one by one. node: name of the node that tiles, for messages.
    """

    grid: TileGrid
    panes: Panes = ONE_PANE
    weights: Weights = "uniform"
    per_forward: int = 0
    own_options: bool = False
    true_positions: bool = False
    node: str = "Tiled MultiDiffusion"

    @property
    def tile_size(self) -> tuple[int, int]:
        """(height, width) of what the model sees at once, all panes of a tile."""
        return self.panes.size(self.grid.tile_height, self.grid.tile_width)

    @property
    def canvas_size(self) -> tuple[int, int]:
        return self.panes.size(self.grid.height, self.grid.width)

    def apply(self, model):
        """A clone of the MODEL that works in tiles.

        Raises ValueError when it does already, or has no positions to shift where true_positions asks for it.
        """
        if model.get_wrappers(WrappersMP.CALC_COND_BATCH, KEY):
            raise ValueError(f"The model already works in tiles. Connect the model from before that to {self.node}.")
        if self.true_positions and type(model.model) not in POSITIONED:
            raise ValueError(
                f"{self.node}: ComfyUI cannot shift the positions of this model ({type(model.model).__name__}). Turn "
                "true_positions off; it is for FLUX and Lumina models."
            )
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self.start_run)
        # Outermost, whatever was put on the model before: all other wrappers then see, and ask memory for, tiles.
        for kind, wrapper in ((WrappersMP.PREPARE_SAMPLING, self.prepare), (WrappersMP.CALC_COND_BATCH, self.evaluate)):
            others = model.wrappers.pop(kind, {})
            model.wrappers[kind] = {KEY: [wrapper], **others}
        if self.own_options:
            model.add_object_patch("concat_cond", without_canvas(model.get_model_object("concat_cond")))
        return model

    def prepare(self, executor, model, noise_shape, *args, **kwargs):
        """Loads the model with room for one forward's tiles, whatever the canvas."""
        tiles = min(max(self.per_forward, 1), len(self.grid))
        shape = [noise_shape[0] * tiles, *noise_shape[1:-2], *self.tile_size]
        return executor(model, shape, *args, **kwargs)

    def start_run(self, executor, guider, sigmas, extra_args, *args, **kwargs):
        """Gives a sampling run its own state, which the host hands back at every evaluation."""
        options = {**extra_args["model_options"], KEY: self.new_run()}
        return executor(guider, sigmas, {**extra_args, "model_options": options}, *args, **kwargs)

    def new_run(self) -> TilingRun:
        per_forward = 1 if self.true_positions else self.per_forward
        return TilingRun(len(self.grid), per_forward, TileControls(self.panes, self.canvas_size))

    def evaluate(self, executor, model, conds, x, timestep, model_options) -> list[Tensor]:
        """The host's calc_cond_batch, tile by tile: denoised `[B, C, H, W]` for each of `conds`.

        Merging what is denoised equals merging velocities, both being evaluated at the same noisy latent.
        """
        self.check(conds, x)
        run = model_options.get(KEY) or self.new_run()
        call = _Evaluation(self, run, executor, model, conds, x, timestep, model_options)
        if len(self.grid) == 1:
            return call.untiled()
        run.start_evaluation(timestep, model_options)
        size = run.tiles_per_forward(model, [*x.shape[:-2], *self.tile_size], x.device)
        weight = tile_weight(self.weights, self.grid.tile_height, self.grid.tile_width, x.device)
        shape = (len(conds), *x.shape[:-2], self.panes.count, self.grid.height, self.grid.width)
        merged = merge_tiles(self.grid, x.new_empty(1).expand(shape), call.predict, size, weight)
        return [self.panes.join(denoised.unbind(-3)).to(x.dtype) for denoised in merged]

    def check(self, conds: Sequence[list[dict[str, Any]] | None], x: Tensor) -> None:
        """Raises ValueError unless the latent and the conditions are the ones the tiles were laid out for."""
        canvas = tuple(x.shape[-2:])
        if x.ndim < 4 or canvas != self.canvas_size:
            raise ValueError(
                f"{self.node} laid its tiles over a latent of {self.canvas_size[0]}x{self.canvas_size[1]} cells "
                f"(height x width), the one being sampled is {list(x.shape)}. Lay them over the latent that is sampled."
            )
        for cond in (cond for entries in conds for cond in entries or ()):
            own = cond.get(TILE_OPTIONS)
            if own is None and self.own_options:
                raise ValueError(
                    f"A conditioning did not come through {self.node}, so its tiles have no image of their own. "
                    f"Connect the sampler's positive and negative to the outputs of {self.node}."
                )
            if own is not None and own.grid != self.grid:
                raise ValueError(
                    f"The conditioning was made for {len(own.grid)} tiles of {own.grid.tile_height}x"
                    f"{own.grid.tile_width} cells over {own.grid.height}x{own.grid.width}, the model for "
                    f"{len(self.grid)} of {self.grid.tile_height}x{self.grid.tile_width} over {self.grid.height}x"
                    f"{self.grid.width}. Take both from the same {self.node}."
                )


def without_canvas(concat_cond: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """A model's concat_cond that makes nothing of NeedsTiledModel: a canvas-wide one would only take memory."""

    def tiles_have_their_own(**kwargs) -> Tensor | None:
        return None if isinstance(kwargs.get("concat_latent_image"), NeedsTiledModel) else concat_cond(**kwargs)

    return tiles_have_their_own


class TilingRun:
    """What one sampling run keeps between evaluations: its progress, and how many tiles memory has held."""

    def __init__(self, tiles: int, per_forward: int, controls: TileControls):
        self.tiles = tiles
        self.per_forward = per_forward
        self.controls = controls
        self.most = tiles
        self.progress: TileProgress | None = None

    def start_evaluation(self, sigma: Tensor, model_options: dict[str, Any]) -> None:
        if self.progress is None:
            self.progress = TileProgress(self.tiles)
        self.progress.start_evaluation(sigma, model_options.get("transformer_options", {}).get("sample_sigmas"))

    def advance(self, tiles: int) -> None:
        if self.progress is not None:
            self.progress.advance(tiles)

    def tiles_per_forward(self, model, tile_shape: list[int], device: torch.device) -> int:
        """tile_shape: `[B, C, ..., h, w]` of one tile."""
        if self.per_forward:
            return min(self.per_forward, self.most)
        batch, height, width = tile_shape[0], *tile_shape[-2:]
        wanted = min(max(CELLS_PER_FORWARD // (batch * height * width), 1), self.most)
        if wanted == 1:
            return 1
        one = model.memory_required(tile_shape) * MEMORY_MARGIN
        return max(min(wanted, int(comfy.model_management.get_free_memory(device) / one)), 1)


@dataclass(frozen=True)
class _Evaluation:
    """One evaluation of the model on all tiles: same time, same conditions."""

    tiling: Tiling
    run: TilingRun
    executor: Callable[..., list[Tensor]]
    model: Any
    conds: Sequence[list[dict[str, Any]] | None]
    x: Tensor
    timestep: Tensor
    model_options: dict[str, Any]

    def batch_of(self, first: int, boxes: Sequence[Box]) -> TileBatch:
        return TileBatch(first, boxes, self.tiling.panes, self.tiling.canvas_size, self.x.shape[0])

    def with_conds(self, change: Callable[[dict[str, Any], str], dict[str, Any] | None]) -> list[Any]:
        """The conditions with every entry changed by `change(entry, prompt type)`, or left out where that is None."""
        changed: list[Any] = []
        for index, entries in enumerate(self.conds):
            made = (change(cond, PROMPT_TYPES[min(index, 1)]) for cond in entries or ())
            changed.append(None if entries is None else [cond for cond in made if cond is not None])
        return changed

    def untiled(self) -> list[Tensor]:
        """With a single tile all is the host's own, but for what the tile says for itself."""
        tiles = self.batch_of(0, self.tiling.grid.boxes)

        def change(cond: dict[str, Any], prompt_type: str) -> dict[str, Any]:
            return {**cond, MODEL_CONDS: cond[MODEL_CONDS] | own_conds(self.model, cond, tiles, self.x, prompt_type)}

        return self.executor(self.model, self.with_conds(change), self.x, self.timestep, self.model_options)

    def forward(self, first: int, boxes: Sequence[Box]) -> list[Tensor]:
        """Denoised tiles `[tiles * B, C, h, w]` for each condition."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        tiles = self.batch_of(first, boxes)
        x = tiles.crop(self.x)
        # One object for one control: the host runs only conditions with the same control together.
        cut_control = cache(lambda control: self.run.controls.cut(control, first, boxes, tiles.batch))
        conds = self.with_conds(
            lambda cond, prompt_type: tile_cond(self.model, cond, tiles, x, prompt_type, cut_control)
        )
        timestep = comfy.utils.repeat_to_batch_size(self.timestep, tiles.items)
        return self.executor(self.model, conds, x, timestep, self.options_of(boxes[0]))

    def options_of(self, box: Box) -> dict[str, Any]:
        """The model's options for a tile: with true_positions, rotary positions that start where the tile does."""
        if not self.tiling.true_positions:
            return self.model_options
        transformer = self.model_options.get("transformer_options", {})
        positions = transformer.get("rope_options", {})
        patch = self.model.diffusion_model.patch_size
        moved = {
            f"shift_{axis}": positions.get(f"shift_{axis}", 0.0) + positions.get(f"scale_{axis}", 1.0) * cells / patch
            for axis, cells in (("y", box.top), ("x", box.left))
        }
        return {**self.model_options, "transformer_options": {**transformer, "rope_options": {**positions, **moved}}}

    def predict(self, first: int, boxes: Sequence[Box]) -> list[Tensor]:
        """Per tile, denoised panes `[conditions, B, C, panes, h, w]`."""
        out: list[Tensor] = []
        for start, together in self.alike(first, boxes):
            denoised = torch.stack(self.within_memory(start, together))
            panes = torch.stack(self.tiling.panes.split(denoised), dim=-3)
            out += panes.chunk(len(together), dim=1)
            self.run.advance(len(together))
        return out

    def alike(self, first: int, boxes: Sequence[Box]) -> Iterator[tuple[int, list[Box]]]:
        """Runs of tiles whose own options have equal shapes (texts of different length do not batch)."""
        own = [cond[TILE_OPTIONS] for entries in self.conds for cond in entries or () if TILE_OPTIONS in cond]
        numbered = enumerate(boxes, first)
        for _, group in groupby(numbered, lambda item: [options.signature(item[0]) for options in own]):
            members = list(group)
            yield members[0][0], [box for _, box in members]

    def within_memory(self, first: int, boxes: Sequence[Box]) -> list[Tensor]:
        """One forward, or several smaller ones where it does not fit; later ones of the run start smaller."""
        if len(boxes) > self.run.most:
            return self.in_parts(first, boxes, self.run.most)
        try:
            return self.forward(first, boxes)
        except Exception as error:
            comfy.model_management.raise_non_oom(error)
        # Out of the handler: the exception holds the failed forward's tensors alive.
        comfy.model_management.soft_empty_cache(True)
        if len(boxes) == 1:
            height, width = self.tiling.tile_size
            raise comfy.model_management.OOM_EXCEPTION(
                f"{self.tiling.node}: a single tile ({width * 8}x{height * 8} pixels in all, batch {self.x.shape[0]}) "
                "does not fit into memory. Choose a smaller tile size or batch, or start ComfyUI with --lowvram."
            )
        self.run.most = len(boxes) // 2
        return self.in_parts(first, boxes, self.run.most)

    def in_parts(self, first: int, boxes: Sequence[Box], size: int) -> list[Tensor]:
        parts = [self.within_memory(first + start, boxes[start : start + size]) for start in range(0, len(boxes), size)]
        return [torch.cat(part) for part in zip(*parts, strict=True)]
