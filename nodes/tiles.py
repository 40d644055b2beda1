"""Tiles for any model: the grid, sampling in it, and prompts of single tiles (arXiv 2302.08113, 2605.15682)."""

from __future__ import annotations

import logging
from functools import partial

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..host.dreamsr.control.patch_prompts import READERS, with_patch_prompts
from ..host.tiling.sampling import Tiling
from ..host.tiling.tile_size import largest_tile
from ..models.tiles.layout import CELL, TileLayout, require_tile
from ..models.tiles.preview import draw_tiles
from .inputs import (
    checked_wrap,
    error_of,
    only,
    preview_input,
    tile_weights_input,
    tiles_per_batch_input,
    wrap_input,
)
from .sockets import TileGridSocket

log = logging.getLogger(__name__)

CATEGORY = "RealISR/Tiles"
GUIDER_NAME = "Tiled MultiDiffusion Guider"
NODE_NAME = "Tiled MultiDiffusion"
NO_POSITIVE = ExecutionBlocker(f"{NODE_NAME}: the positive output is used, but its positive input is not connected.")


class TileGridNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_TileGrid",
            display_name="Tile Grid",
            category=CATEGORY,
            description=(
                "Lays overlapping tiles over an image or latent, for the captioner, the sampler and whatever else "
                "works in tiles: all read this one grid. The last row and column end at the border, so that every "
                "tile is full size."
            ),
            search_aliases=["tiles", "tile size", "overlap", "grid", "multidiffusion", "dreamsr", "tiled", "patches"],
            inputs=[
                io.MultiType.Input(
                    "size_of",
                    [io.Image, io.Latent],
                    tooltip="The image or latent at the size of the result. An image is also drawn in the preview.",
                ),
                io.Int.Input(
                    "tile_size",
                    default=512,
                    min=0,
                    max=4096,
                    step=16,
                    tooltip=(
                        "Side of a tile in pixels. DreamSR was trained with 512. 0: the largest of 1024, 768 and 512 "
                        "that fits the free memory; needs model."
                    ),
                ),
                io.Int.Input(
                    "overlap",
                    default=128,
                    min=0,
                    max=2048,
                    step=8,
                    tooltip=(
                        "Pixels shared by neighbouring tiles, at least. A quarter to a half of a tile hides seams; 0 "
                        "is allowed and leaves them."
                    ),
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="Only for tile_size 0: the model whose memory need is estimated."
                ),
                io.Int.Input(
                    "align",
                    default=2,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip=(
                        "Tiles start at multiples of this many latent cells (8 pixels): 2 for models that read latents "
                        "in patches of 2x2 (FLUX, SD3, Qwen-Image), 8 for SD and SDXL, 1 for any. Tile sizes are "
                        "rounded down to such multiples."
                    ),
                ),
                wrap_input(),
            ],
            outputs=[
                TileGridSocket.Output(display_name="tile_grid", tooltip="For every node that works in tiles."),
                io.Image.Output(
                    display_name="preview",
                    tooltip=(
                        "Each tile's own part in a colour of its own, with its number, row by row from 1. What tiles "
                        "share is darker; the whole of tile 1 is outlined."
                    ),
                ),
                io.Int.Output(display_name="tiles", tooltip="Number of tiles."),
            ],
        )

    @classmethod
    def validate_inputs(cls, tile_size: int | None = None, overlap: int | None = None, align: int | None = None):
        # Values on wires are not known yet; 0 is chosen when it runs.
        if not tile_size:
            return True
        return error_of(partial(require_tile, tile_size, overlap or 0, align or 1)) or True

    @classmethod
    def execute(
        cls, size_of, tile_size: int, overlap: int, align: int, model=None, wrap: str = "none"
    ) -> io.NodeOutput:
        image = size_of if isinstance(size_of, torch.Tensor) else None
        if image is not None:
            height, width = image.shape[1:3]
        else:
            height, width = (side * CELL for side in size_of["samples"].shape[-2:])
        if tile_size == 0:
            if model is None:
                raise ValueError("Tile Grid: tile_size 0 chooses by free memory, for which model must be connected.")
            tile_size = largest_tile(model)
        layout = TileLayout.fitted(height, width, tile_size, overlap, align, checked_wrap(wrap))
        if overlap == 0 and len(layout) > 1:
            log.warning("RealISR: Tile Grid has no overlap: the borders of its tiles will show.")
        return io.NodeOutput(layout, draw_tiles(layout, image), len(layout))


def sampling_inputs() -> list[io.Input]:
    """What both ways to sample in tiles take, after model and conditionings."""
    return [
        TileGridSocket.Input("tile_grid", tooltip="From Tile Grid, for the latent that will be sampled."),
        tile_weights_input("uniform"),
        tiles_per_batch_input(),
        io.Boolean.Input(
            "true_positions",
            default=False,
            advanced=True,
            tooltip=(
                "Tell the model where in the image a tile lies, instead of treating each as an image of its own. For "
                "FLUX and Lumina models; tiles then run one by one. DreamSR and MultiDiffusion leave it off."
            ),
        ),
        io.Conditioning.Input(
            "patch_prompts",
            optional=True,
            tooltip=(
                "A list with one conditioning for each tile, row by row (Encode Patch Prompts), or as many combined."
            ),
        ),
        io.Combo.Input(
            "patch_prompt_reader",
            options=list(READERS),
            default="auto",
            advanced=True,
            tooltip=(
                "Who reads the patch prompts. control: the ControlNets, ordinary or MM, while the model keeps the "
                "global prompt, as in DreamSR. model: the model, in place of the global prompt. both: both. auto: "
                "control where there is one, else model."
            ),
        ),
        preview_input(),
    ]


def tiled(
    node: str, model, positive, tile_grid, weights, tiles_per_batch, true_positions, patch_prompts, reader, preview
):
    """MODEL and positive CONDITIONING that work in tiles; all arguments as lists."""
    layout: TileLayout = only(node, "tile_grid", tile_grid)
    tiling = Tiling(
        layout.grid,
        weights=only(node, "weights", weights),
        per_forward=only(node, "tiles_per_batch", tiles_per_batch),
        true_positions=only(node, "true_positions", true_positions),
        preview=only(node, "preview", preview) is not False,
        node=node,
    )
    conditioning = only(node, "positive", positive)
    if patch_prompts:
        if conditioning is None:
            raise ValueError(f"{node}: patch_prompts need positive, the global prompt. Connect it.")
        chosen = only(node, "patch_prompt_reader", reader)
        conditioning = with_patch_prompts(conditioning, layout.grid, patch_prompts, chosen, node)
    return tiling.apply(only(node, "model", model)), conditioning


class TiledMultiDiffusion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_TiledMultiDiffusion",
            display_name=NODE_NAME,
            category=CATEGORY,
            description=(
                "Makes any model sample in overlapping tiles, merged at every step, under any sampler and guider: "
                "KSampler included. Masked images, reference latents, masks, areas and ControlNet hints are cut with "
                "the tiles. Memory depends on the tiles run together, not on the image. With one tile, the model "
                "gives exactly what it gives without."
            ),
            search_aliases=[
                "multidiffusion",
                "tiled diffusion",
                "tiled sampling",
                "tiles",
                "4k",
                "8k",
                "dreamsr",
                "ultra high resolution",
                "mixture of diffusers",
            ],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="Any diffusion model, with its LoRAs and ControlNets applied."),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The global prompt. Only needed for patch_prompts.",
                ),
                *sampling_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, working in tiles."),
                io.Conditioning.Output(
                    display_name="positive", tooltip="positive with the patch prompts in it; as it came without."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        tile_grid,
        weights,
        tiles_per_batch,
        true_positions,
        patch_prompt_reader,
        positive=None,
        patch_prompts=None,
        preview=None,
    ) -> io.NodeOutput:
        patched, conditioning = tiled(
            NODE_NAME,
            model,
            positive,
            tile_grid,
            weights,
            tiles_per_batch,
            true_positions,
            patch_prompts,
            patch_prompt_reader,
            preview,
        )
        return io.NodeOutput(patched, NO_POSITIVE if conditioning is None else conditioning)


class TiledMultiDiffusionGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_TiledMultiDiffusionGuider",
            display_name=GUIDER_NAME,
            category=CATEGORY,
            description=(
                "Tiled MultiDiffusion as a guider for SamplerCustomAdvanced and Acceleration-LoRA Step: model, "
                "prompts, patch prompts and guidance in one. A negative prompt is used at cfg above 1 only."
            ),
            search_aliases=["multidiffusion", "tiled guider", "patch prompts", "tiled sampling", "dreamsr", "cfg"],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="Any diffusion model, with its LoRAs and ControlNets applied."),
                io.Conditioning.Input("positive", tooltip="The global prompt, with guidance and ControlNets applied."),
                io.Conditioning.Input("negative", optional=True, tooltip="For cfg above 1."),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance. FLUX.1-dev runs at 1 and is guided by FluxGuidance.",
                ),
                *sampling_inputs(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        cfg,
        tile_grid,
        weights,
        tiles_per_batch,
        true_positions,
        patch_prompt_reader,
        negative=None,
        patch_prompts=None,
        preview=None,
    ) -> io.NodeOutput:
        patched, conditioning = tiled(
            GUIDER_NAME,
            model,
            positive,
            tile_grid,
            weights,
            tiles_per_batch,
            true_positions,
            patch_prompts,
            patch_prompt_reader,
            preview,
        )
        scale, against = only(GUIDER_NAME, "cfg", cfg), only(GUIDER_NAME, "negative", negative)
        if scale != 1.0 and against is None:
            raise ValueError(f"{GUIDER_NAME}: cfg {scale:g} needs a negative prompt. Connect one, or set cfg to 1.")
        guider = comfy.samplers.CFGGuider(patched)
        guider.set_cfg(scale)
        guider.inner_set_conds(
            {"positive": conditioning} if against is None else {"positive": conditioning, "negative": against}
        )
        return io.NodeOutput(guider)


NODES = [TileGridNode, TiledMultiDiffusion, TiledMultiDiffusionGuider]
