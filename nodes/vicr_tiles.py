"""VICR on images larger than a panel: diptychs in tiles, merged at every step (arXiv 2606.00704)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host.vicr.tiles import DiptychTileOptions, tile_diptych, tile_images
from .inputs import error_of, only, preview_input, tile_weights_input, tiles_per_batch_input
from .sockets import DiptychSocket
from .vicr import CATEGORY

DEFAULTS = DiptychTileOptions()


def canvas_inputs() -> list[io.Input]:
    return [
        io.Image.Input("canvas", tooltip="The canvas of Diptych Builder, at the full size of the result."),
        DiptychSocket.Input("diptych", tooltip="The record of the same Diptych Builder."),
    ]


def tile_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "tile_size",
            default=DEFAULTS.tile,
            min=64,
            max=4096,
            step=16,
            tooltip=(
                "Side in pixels of a tile's panel, rounded down to a multiple of 16; no larger than the image. Use "
                "the size the LoRA was trained at: 512 or 1024. A tile's diptych is twice as wide (or high)."
            ),
        ),
        io.Int.Input(
            "tile_overlap",
            default=DEFAULTS.overlap,
            min=0,
            max=2048,
            step=16,
            tooltip=(
                "Pixels shared by neighbouring tiles, at least; a quarter of a tile hides seams well. 0 is allowed "
                "and leaves them."
            ),
        ),
    ]


def options_error(tile_size: Any, tile_overlap: Any) -> str | None:
    """What is wrong with widget values; wired ones, which are not known before the run, are passed over."""
    size, overlap = (value[0] if isinstance(value, list) else value for value in (tile_size, tile_overlap))
    if size is None or overlap is None:
        return None
    return error_of(lambda: DiptychTileOptions(size, overlap))


class DiptychTiles(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_DiptychTiles",
            display_name="Diptych Tiles",
            category=CATEGORY,
            description=(
                "For images larger than a panel: restores in overlapping diptych tiles (LQ tile beside restored tile), "
                "merged at every step, so that neighbours agree while the image forms. All tiles share the prompt and "
                "the bridge's view of the whole image; each may have a prompt of its own. Takes the place of "
                "InpaintModelConditioning. Works with any sampler and guider. An image of one tile is restored as "
                "without this node, exactly."
            ),
            search_aliases=["vicr", "diptych", "tiled", "tiles", "multidiffusion", "large image", "4k", "seams"],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="FLUX.1 Fill, with LoRA and bridge applied."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Prompt of the whole image, with guidance (FluxGuidance 30) and bridge applied.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="For cfg above 1. Unconnected: no text. FLUX Fill is meant to run at cfg 1, without it.",
                ),
                io.Vae.Input("vae", tooltip="FLUX's VAE. Each tile's diptych is encoded by itself."),
                *canvas_inputs(),
                *tile_inputs(),
                tile_weights_input(DEFAULTS.weights),
                tiles_per_batch_input(),
                io.Conditioning.Input(
                    "tile_prompts",
                    optional=True,
                    tooltip=(
                        "A list with one conditioning for each tile, row by row (CLIP Text Encode of a list of "
                        "texts), or as many combined. Each replaces the positive's text in its tile; guidance and "
                        "bridge stay. Diptych Tile Images gives the tiles to caption."
                    ),
                ),
                preview_input(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler. Works in tiles."),
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler, with the model output."),
                io.Conditioning.Output(display_name="negative", tooltip="For samplers that ask for one."),
                io.Latent.Output(
                    display_name="latent", tooltip="Empty latent of the whole canvas: sample this, at denoise 1."
                ),
                io.Latent.Output(
                    display_name="tile_latent",
                    tooltip="Empty latent of one tile's diptych: for FLUX Fill Sigmas, whose shift goes by it. Not to "
                    "be sampled.",
                ),
                io.Int.Output(display_name="tiles", tooltip="Number of tiles."),
            ],
        )

    @classmethod
    def validate_inputs(cls, tile_size=None, tile_overlap=None):
        return options_error(tile_size, tile_overlap) or True

    @classmethod
    def execute(
        cls,
        model,
        positive,
        vae,
        canvas,
        diptych,
        tile_size,
        tile_overlap,
        weights,
        tiles_per_batch,
        negative=None,
        tile_prompts=None,
        preview=None,
    ) -> io.NodeOutput:
        def one(name: str, values: list[Any] | None) -> Any:
            return only("Diptych Tiles", name, values, several="tile_prompts")

        options = DiptychTileOptions(
            tile=one("tile_size", tile_size),
            overlap=one("tile_overlap", tile_overlap),
            weights=one("weights", weights),
            per_forward=one("tiles_per_batch", tiles_per_batch),
            preview=one("preview", preview) is not False,
        )
        made = tile_diptych(
            one("model", model),
            one("positive", positive),
            one("negative", negative),
            one("vae", vae),
            one("canvas", canvas),
            one("diptych", diptych),
            options,
            tile_prompts,
        )
        return io.NodeOutput(made.model, made.positive, made.negative, made.latent, made.tile_latent, made.tiles)


class DiptychTileImages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_DiptychTileImages",
            display_name="Diptych Tile Images",
            category=CATEGORY,
            description=(
                "The LQ side of every tile of Diptych Tiles, row by row, to look at or to caption for tile_prompts. "
                "Give both nodes the same tile size and overlap."
            ),
            search_aliases=["vicr", "diptych", "tiles", "split", "patch prompts", "caption tiles"],
            inputs=[*canvas_inputs(), *tile_inputs()],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="A list with one image (or batch, of a batch) for each tile.",
                ),
                io.Int.Output(display_name="tiles", tooltip="Number of tiles."),
            ],
        )

    @classmethod
    def validate_inputs(cls, tile_size=None, tile_overlap=None):
        return options_error(tile_size, tile_overlap) or True

    @classmethod
    def execute(cls, canvas, diptych, tile_size: int, tile_overlap: int) -> io.NodeOutput:
        images = tile_images(canvas, diptych, DiptychTileOptions(tile_size, tile_overlap))
        return io.NodeOutput(images, len(images))


NODES = [DiptychTiles, DiptychTileImages]
