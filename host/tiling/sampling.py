"""Tiles merged at every evaluation of a model (MultiDiffusion), under any sampler and guider of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from threading import Lock
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.utils
import torch
from comfy.controlnet import ControlBase
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...models.tiles.grid import ONE_PANE, Box, Panes, TileGrid
from ...models.tiles.merge import merge_tiles, sum_of_weights
from ...models.tiles.weights import Weights, tile_weight
from ..copies import copy_of
from ..live_tiles import LIVE, LiveTiles, Numbered, live_tiles
from ..memory import NOTHING, MostTogether, within_memory
from ..progress import TileProgress, begin
from ..types import Model
from .conditions import MODEL_CONDS, TILE, OwnCondsMemo, TileBatch, canvas_conds, tile_cond, tile_options
from .controls import TileControls
from .devices import Devices, needs_one_device, without_devices

KEY = "realisr_tiling"

CELLS_PER_FORWARD = 128 * 128
"""Latent cells beyond which a larger forward is no faster per cell, only larger: an image of 1024 x 1024 pixels."""

MEMORY_MARGIN = 1.5
"""Of the host's estimate of a forward, as the host itself leaves it when it batches conditions."""

KEPT_SHARE = 1 / 4
"""Of the memory free when a run starts, what tiles' own conditions may take."""

POSITIONED = (comfy.model_base.Flux, comfy.model_base.Flux2, comfy.model_base.Lumina2)
"""Image models whose rotary positions the host can shift. Not their subclasses: some have positions of their own."""

PROMPT_TYPES = ("positive", "negative")


@dataclass(frozen=True)
class Tiling:
    """Makes a MODEL predict tile by tile."""

    grid: TileGrid | None
    """Tiles over a pane of the latent, in latent cells. None: those that the conditioning brings, and none without."""
    panes: Panes = ONE_PANE
    """How panes make up the latent."""
    weights: Weights = "uniform"
    """Of the mean where tiles overlap."""
    per_forward: int = 0
    """Tiles run together; 0 for as many as free memory holds, up to CELLS_PER_FORWARD."""
    own_images: bool = False
    """Every condition brings a masked image for each tile, and nothing is made of the canvas's."""
    true_positions: bool = False
    """Tiles' rotary positions are those they have in the canvas, not counted from 0; they then run one by one."""
    preview: bool = False
    """Show the tiles as they are done, with the host's quick look at latents. Whole-method nodes bring their own."""
    node: str = "Tiled MultiDiffusion"
    """Name of the node that lays the tiles, for messages."""

    @property
    def laid(self) -> TileGrid:
        assert self.grid is not None, "resolve first"
        return self.grid

    @property
    def tile_size(self) -> tuple[int, int]:
        """(height, width) of what the model sees at once, all panes of a tile."""
        return self.panes.size(self.laid.tile_height, self.laid.tile_width)

    @property
    def canvas_size(self) -> tuple[int, int]:
        return self.panes.size(self.laid.height, self.laid.width)

    def apply(self, model: Model) -> Model:
        """A clone of the MODEL that works in tiles; in these, where it would follow its conditioning.

        Raises ValueError when it works in tiles already, or has no positions to shift where true_positions asks for it.
        """
        for wrapper in model.get_wrappers(WrappersMP.CALC_COND_BATCH, KEY):
            if wrapper.__self__.grid is not None:
                raise ValueError(
                    f"The model already works in tiles. Connect the model from before that to {self.node}."
                )
        if self.true_positions and type(model.model) not in POSITIONED:
            raise ValueError(
                f"{self.node}: ComfyUI cannot shift the positions of this model ({type(model.model).__name__}). Turn "
                "true_positions off; it is for FLUX and Lumina models."
            )
        model = copy_of(model)
        self.attach(model)
        return model

    def attach(self, model: Model) -> None:
        """Make this MODEL itself work in tiles."""
        model.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self.start_run)
        # Outermost, whatever was put on the model before: all other wrappers then see, and ask memory for, tiles.
        for kind, wrapper in ((WrappersMP.PREPARE_SAMPLING, self.prepare), (WrappersMP.CALC_COND_BATCH, self.evaluate)):
            others = {key: kept for key, kept in model.wrappers.pop(kind, {}).items() if key != KEY}
            model.wrappers[kind] = {KEY: [wrapper], **others}
        if self.own_images:
            model.add_object_patch("extra_conds", self.only_of_tiles(model.get_model_object("extra_conds")))

    def only_of_tiles(self, extra_conds: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        """A model's extra_conds that makes nothing for the canvas: a masked image that large would only take memory.

        It raises ValueError for a condition whose tiles have no images.
        """

        def made(**kwargs: Any) -> dict[str, Any]:
            if TILE in kwargs:
                return extra_conds(**kwargs)
            self.resolve([kwargs])
            if tile_options(kwargs) is None:
                raise ValueError(
                    f"A conditioning did not come through {self.node}, so its tiles have no image of their own. "
                    f"Connect the sampler's positive and negative to the outputs of {self.node}."
                )
            return {}

        return made

    def resolve(self, entries: Iterable[dict[str, Any]]) -> Tiling | None:
        """This, with the grid that is to be used for conditions' entries; None for no tiles.

        Raises ValueError unless all that were made for tiles were made for the same.
        """
        grid = self.grid
        for own in (own for entry in entries if (own := tile_options(entry)) is not None):
            if grid is None:
                grid = own.grid
            elif not own.grid.lies_as(grid):
                raise ValueError(
                    f"The conditioning was made for {own.grid}, the model for {grid}. Take both from the same "
                    f"{self.node}, or connect one Tile Grid to the nodes that made them."
                    if self.grid is not None
                    else f"One conditioning was made for {grid}, another for {own.grid}. Make both with one "
                    f"{self.node} node."
                )
        return None if grid is None else replace(self, grid=grid)

    def prepare(self, executor, model, noise_shape, conds, *args, **kwargs):
        """Loads the model with room for one forward's tiles, whatever the canvas."""
        tiling = self.resolve(entry for entries in conds.values() for entry in entries)
        if tiling is not None:
            begin()
            tiles = min(max(self.per_forward, 1), len(tiling.laid))
            noise_shape = [noise_shape[0] * tiles, *noise_shape[1:-2], *tiling.tile_size]
        return executor(model, noise_shape, conds, *args, **kwargs)

    def start_run(
        self,
        executor,
        guider,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        *args,
        **kwargs,
    ):
        """Gives a sampling run its own state, which the host hands back at every evaluation."""
        live = extra_args["model_options"].get(LIVE)
        if live is None and self.preview:
            live = live_tiles(guider.model_patcher)
        run = TilingRun(len(sigmas) - 1, live)
        if live is not None and latent_image is not None:
            live.begin(latent_image)

        def stepped(step: int, denoised: Tensor, x: Tensor, steps: int) -> None:
            run.finish_step(step + 1, denoised, callback is None)
            # The host's own preview of the step is of the same picture: all tiles are in it, and none is outlined.
            if callback is not None:
                callback(step, denoised, x, steps)

        given = {**extra_args, "model_options": {**extra_args["model_options"], KEY: run}}
        samples = executor(guider, sigmas, given, stepped, noise, latent_image, denoise_mask, *args, **kwargs)
        if live is not None:
            live.ended(run.progress)
        return samples

    def evaluate(self, executor, model, conds, x, timestep, model_options) -> list[Tensor]:
        """The host's calc_cond_batch, tile by tile: denoised `[B, C, H, W]` for each of `conds`.

        Merging what is denoised equals merging velocities, both being evaluated at the same noisy latent.
        """
        tiling = self.resolve(cond for entries in conds for cond in entries or ())
        if tiling is None:
            return executor(model, conds, x, timestep, model_options)
        tiling.check(x)
        run = model_options.get(KEY) or TilingRun()
        run.lay(tiling, x.device)
        call = _Evaluation(tiling, run, executor, model, conds, x, timestep, model_options)
        return call.untiled() if len(tiling.laid) == 1 else call.on_all_devices().tiled()

    def check(self, x: Tensor) -> None:
        """Raises ValueError unless the latent is the one that the tiles were laid over."""
        if x.ndim < 4 or tuple(x.shape[-2:]) != self.canvas_size:
            raise ValueError(
                f"{self.node} laid its tiles over a latent of {self.canvas_size[0]}x{self.canvas_size[1]} cells "
                f"(height x width), the one being sampled is {list(x.shape)}. Lay them over the latent that is sampled."
            )


class TilingRun:
    """What one sampling run keeps between evaluations. live: what it shows of them."""

    tiling: Tiling | None = None
    most: MostTogether
    """Tiles that memory has turned out to hold."""
    controls: TileControls
    own: OwnCondsMemo
    weights: tuple[Tensor, Tensor] | None = None

    def __init__(self, steps: int = 1, live: LiveTiles | None = None):
        self.progress = TileProgress(1, steps)
        self.live = live
        self.preparing = Lock()
        """Held while a tile is cut out of what the whole run shares, which several devices' threads do."""

    def finish_step(self, step: int, denoised: Tensor, show: bool) -> None:
        """So many steps are done, and the whole has come to `denoised`. show: move the bar, which nobody else does."""
        if self.progress.finish_step(step) and show:
            self.progress.show()
        if self.live is not None:
            self.live.stepped(denoised, self.progress)

    def lay(self, tiling: Tiling, device: torch.device) -> None:
        """Start with these tiles, unless the run already has; conditions bring others only where hooks change them."""
        if tiling == self.tiling:
            return
        self.tiling = tiling
        self.most = MostTogether(len(tiling.laid))
        self.progress = TileProgress(len(tiling.laid), self.progress.steps, self.progress.step)
        if self.live is not None:
            self.live.lay(tiling.panes, (tiling.laid.height, tiling.laid.width))
        self.weights = None
        self.controls = TileControls(tiling.panes, tiling.canvas_size)
        budget = int(comfy.model_management.get_free_memory(device) * KEPT_SHARE)
        # Of a single step nothing is read again.
        self.own = OwnCondsMemo(budget if self.progress.steps > 1 else NOTHING)

    def weights_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A tile's weights, and the sum of all tiles', which no step changes."""
        assert self.tiling is not None, "lay first"
        if self.weights is None or self.weights[0].device != device:
            grid = self.tiling.laid
            weight = tile_weight(self.tiling.weights, grid.tile_height, grid.tile_width, device)
            self.weights = weight, sum_of_weights(grid, weight)
        return self.weights

    def make_room(self) -> bool:
        """Keep no conditions of tiles any more, as memory is short; says whether they took any."""
        kept = any(nbytes for _, nbytes in self.own.memo.kept.values())
        self.own = OwnCondsMemo(NOTHING)
        return kept

    def tiles_per_forward(self, tiling: Tiling, model: BaseModel, tile_shape: list[int], device: torch.device) -> int:
        """tile_shape: `[B, C, ..., h, w]` of one tile."""
        free = comfy.model_management.get_free_memory
        return tiles_together(tiling, self.most.items, model, tile_shape, lambda: free(device))


def tiles_together(
    tiling: Tiling, most: int, model: BaseModel, tile_shape: Sequence[int], free: Callable[[], float]
) -> int:
    """How many of at most `most` tiles of `[B, C, ..., h, w]` run in one forward. free: asks for bytes of memory."""
    if tiling.true_positions:
        return 1
    if tiling.per_forward:
        return min(tiling.per_forward, most)
    batch, height, width = tile_shape[0], *tile_shape[-2:]
    wanted = min(max(CELLS_PER_FORWARD // (batch * height * width), 1), most)
    if wanted == 1:
        return 1
    one = model.memory_required(tile_shape) * MEMORY_MARGIN
    return max(min(wanted, int(free() / one)), 1)


@dataclass(frozen=True)
class _Evaluation:
    """One evaluation of the model on all tiles: same time, same conditions."""

    tiling: Tiling
    run: TilingRun
    executor: Callable[..., list[Tensor]]
    model: BaseModel
    conds: Sequence[list[dict[str, Any]] | None]
    x: Tensor
    timestep: Tensor
    model_options: dict[str, Any]
    devices: Devices | None = None
    """That run tiles side by side; None for the one of x."""

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
        tiles = self.batch_of(0, self.tiling.laid.boxes)

        def change(cond: dict[str, Any], prompt_type: str) -> dict[str, Any]:
            own = self.run.own.own_conds(self.model, cond, tiles, self.x, prompt_type)
            return {**cond, MODEL_CONDS: {**canvas_conds(cond), **own}}

        return self.executor(self.model, self.with_conds(change), self.x, self.timestep, self.model_options)

    def on_all_devices(self) -> _Evaluation:
        """This, shared by all devices the run has, or on its own one where the conditions cannot be shared."""
        devices = Devices.of(self.model_options)
        if devices is None:
            return self
        if any(needs_one_device(cond) for entries in self.conds for cond in entries or ()):
            return replace(self, model_options=without_devices(self.model_options))
        return replace(self, devices=devices)

    def together(self) -> int:
        """Tiles that are run at a time, on all devices."""
        tile_shape = [*self.x.shape[:-2], *self.tiling.tile_size]
        devices = [self.x.device] if self.devices is None else list(self.devices.copies)
        most = min(self.run.tiles_per_forward(self.tiling, self.model, tile_shape, device) for device in devices)
        if self.devices is None:
            return most
        return self.devices.together(len(self.tiling.laid), most) * len(devices)

    def tiled(self) -> list[Tensor]:
        grid, panes, x = self.tiling.laid, self.tiling.panes, self.x
        self.run.progress.start_evaluation(self.timestep)
        together = self.together()
        weight, weights = self.run.weights_on(x.device)
        field = x.new_empty(1).expand(len(self.conds), *x.shape[:-2], panes.count, grid.height, grid.width)
        merged = merge_tiles(grid, field, self.predict, together, weight, weights)
        return [panes.join(denoised.unbind(-3)).to(x.dtype) for denoised in merged]

    def predict(self, first: int, boxes: Sequence[Box]) -> list[Tensor]:
        """Per tile, denoised panes `[conditions, B, C, panes, h, w]`."""
        out: list[Tensor] = []
        numbered = list(enumerate(boxes, first))
        for tiles in self.alike(numbered) if self.devices is None else [numbered]:
            try:
                denoised = self.within_memory(tiles)
            except Exception as error:
                comfy.model_management.raise_non_oom(error)
                cell = self.model.latent_format.spacial_downscale_ratio
                height, width = (side * cell for side in self.tiling.tile_size)
                raise comfy.model_management.OOM_EXCEPTION(
                    f"{self.tiling.node}: a single tile ({width}x{height} pixels in all, batch {self.x.shape[0]}) "
                    "does not fit into memory. Choose a smaller tile size or batch, or start "
                    "ComfyUI with --lowvram."
                ) from None
            out += [torch.stack(self.tiling.panes.split(tile), dim=-3) for tile in denoised]
            self.run.progress.advance(len(tiles))
            if self.run.live is not None:
                told = next(index for index, entries in enumerate(self.conds) if entries is not None)
                self.run.live.finished(tiles, [tile[told, 0] for tile in denoised])
        return out

    def alike(self, tiles: Numbered) -> Iterator[Numbered]:
        """Runs of numbered tiles whose own options have equal shapes (texts of different length do not batch)."""
        own = [options for entries in self.conds for cond in entries or () if (options := tile_options(cond))]
        for _, group in groupby(tiles, lambda tile: [options.signature(tile[0]) for options in own]):
            yield list(group)

    def within_memory(self, numbered: Numbered) -> list[Tensor]:
        """Denoised `[conditions, B, C, h, w]` of each of some neighbouring tiles; alike, where there is one device."""
        if self.devices is None:
            return within_memory(self.announced, numbered, self.run.most, self.run.make_room)
        self.announce(numbered)

        def on_device(device: torch.device, part: Numbered) -> list[Tensor]:
            forward, run = partial(self.forward, device=device), self.run
            return [
                denoised
                for tiles in self.alike(part)
                for denoised in within_memory(forward, tiles, run.most, run.make_room)
            ]

        return self.devices.run(on_device, numbered)

    def announce(self, numbered: Numbered) -> None:
        """These tiles are run next."""
        if self.run.live is not None:
            self.run.live.running(numbered, self.run.progress)

    def announced(self, numbered: Numbered) -> list[Tensor]:
        self.announce(numbered)
        return self.forward(numbered)

    def forward(self, numbered: Numbered, device: torch.device | None = None) -> list[Tensor]:
        """Denoised `[conditions, B, C, h, w]` of tiles, by one call of the host. device: one of the devices."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        first, boxes = numbered[0][0], [box for _, box in numbered]
        tiles = self.batch_of(first, boxes)
        x = tiles.crop(self.x)

        # One object for one control: the host runs only conditions with the same control together.
        @cache
        def cut_control(control: ControlBase) -> ControlBase:
            own = control if device is None else control.get_instance_for_device(device)
            return self.run.controls.cut(own, first, boxes, tiles.batch)

        def change(cond: dict[str, Any], prompt_type: str) -> dict[str, Any] | None:
            own = self.run.own.own_conds(self.model, cond, tiles, x, prompt_type)
            return tile_cond(cond, tiles, own, x.device, cut_control)

        # Conditions of a tile may be made when its turn comes, and that may take longer than the tile.
        on_the_way = nullcontext() if device is not None else self.run.progress.on_the_way(len(boxes))
        with self.run.preparing, on_the_way:
            conds = self.with_conds(change)
        timestep = comfy.utils.repeat_to_batch_size(self.timestep, tiles.items)
        options = self.options_of(boxes[0])
        if self.devices is not None and device is not None:
            options = self.devices.options_on(device, options)
        out = self.executor(self.model, conds, x, timestep, options)
        return list(torch.stack(out).chunk(len(boxes), dim=1))

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
