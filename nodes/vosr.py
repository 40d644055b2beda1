"""VOSR: conditioning, guidance, and the whole method in one node (arXiv 2604.03225)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host.estimate import require_possible
from ..host.images import checked_image, with_transparency
from ..host.vosr.conditioning import EncodeOptions, Posterior, SquareTiles, build_conditioning
from ..host.vosr.estimate import estimate
from ..host.vosr.guider import RestorationGuider
from ..host.vosr.restore import VOSRRestoreOptions, restore, vosr_info
from ..models.color import METHODS, Method
from ..models.presets import CUSTOM, VOSR, applied
from ..models.tiles.layout import TileLayout
from ..models.vosr.sampling import DEFAULT_GUIDANCE_SCALE, RestorationGuidance
from .inputs import (
    MAX_SEED,
    TILE_CHECK_OFF,
    checked_wrap,
    chosen_repair,
    error_of,
    mask_input,
    preview_input,
    read_choice,
    resize_input,
    size_shown,
    target_size,
    tile_check_inputs,
    vae_tile_input,
    wrap_input,
)
from .presets import preset_input
from .sockets import TileGridSocket

CATEGORY = "RealISR/VOSR"
POSTERIORS = ["mean", "sample"]
TILE_AUTO, TILE_CUSTOM, TILE_OFF = "auto", "custom", "off"
OWN_STRENGTH = -1.0
"""Of the weak strength widget: the model's own."""


def weak_strength_input() -> io.Float.Input:
    return io.Float.Input(
        "weak_strength",
        default=OWN_STRENGTH,
        min=OWN_STRENGTH,
        max=1.0,
        step=0.01,
        round=0.001,
        advanced=True,
        tooltip=(
            "How much of the LQ latent the weak condition sees (w), from 0 to 1. -1: the model's own, the middle of "
            "the range its args.json says it was trained with, as the authors' scripts sample; 0.15 (trained 0.05 to "
            "0.25) for the released models and where nothing is said."
        ),
    )


def weak_strength_error(weak_strength: float | None) -> str | None:
    """What is wrong with a widget's value; one on a wire is not known yet."""
    return None if weak_strength is None else error_of(lambda: EncodeOptions(chosen_strength(weak_strength)))


def chosen_strength(weak_strength: float) -> float | None:
    return None if weak_strength == OWN_STRENGTH else weak_strength


def tile_grid_input(instead_of: str) -> io.Custom.Input:
    return TileGridSocket.Input(
        "tile_grid",
        optional=True,
        tooltip=(
            f"From Tile Grid, in place of {instead_of}: for the image at the size of the result, its sides multiples "
            "of 16, with an align of 2."
        ),
    )


def posterior_input() -> io.Combo.Input:
    return io.Combo.Input(
        "posterior",
        options=POSTERIORS,
        default="mean",
        advanced=True,
        tooltip=(
            "The LQ latent as the VAE's mean, the same every time, or as a random sample, as the authors' scripts "
            "draw it."
        ),
    )


def scale_input() -> io.Float.Input:
    return io.Float.Input(
        "restoration_scale",
        default=DEFAULT_GUIDANCE_SCALE,
        min=-2.0,
        max=4.0,
        step=0.05,
        round=0.001,
        tooltip=(
            "Guidance s in weak + s (full - weak). Larger is more faithful to the input, smaller invents more: "
            "about -0.5 (most generative) to 2 (most faithful; the authors' command line default). 0.5 is the "
            "authors' everyday value. 1 and 0 need a single branch and run twice as fast."
        ),
    )


def interval_inputs() -> list[io.Float.Input]:
    return [
        io.Float.Input(
            "guidance_start",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            advanced=True,
            tooltip="Guide only steps whose time is at least this. Time runs from 1 (noise) to 0 (image).",
        ),
        io.Float.Input(
            "guidance_end",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            advanced=True,
            tooltip="Guide only steps whose time is at most this; the others use the full condition alone.",
        ),
    ]


def tile_inputs(size: int, overlap: int) -> list[io.Int.Input]:
    return [
        io.Int.Input(
            "tile_size",
            default=size,
            min=0,
            max=4096,
            step=16,
            tooltip=(
                "Side in pixels of the square tiles the diffusion model works in, cut to the shorter side of the "
                "image; 0 for no tiles. Use the size it was trained at: 512 for the released models, 64 for VOSR nano."
            ),
        ),
        io.Int.Input(
            "tile_overlap",
            default=overlap,
            min=0,
            max=2048,
            step=8,
            tooltip=(
                "Pixels shared by neighbouring tiles, at least an eighth of a tile. Predictions are blended at "
                "every step, so seams do not build up."
            ),
        ),
    ]


class VOSRConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_VOSRConditioning",
            display_name="VOSR Conditioning",
            category=CATEGORY,
            description=(
                "Makes VOSR's two conditions from an image already at the size of the result: full (LQ latent and "
                "DINOv2 features) and weak (a fraction of the latent, no features). Connect them to Restoration-CFG "
                "Guider, or to the positive and negative of any sampler, whose cfg then is the restoration scale. "
                "Sides are padded to a multiple of 16 (4 with pixel unshuffle); crop the decoded image to width and "
                "height. Alpha is left out."
            ),
            search_aliases=["vosr", "restoration conditioning", "weak condition", "dino"],
            inputs=[
                io.Image.Input(
                    "image", tooltip="LQ image, enlarged to the size of the result (Upscale for Restoration)."
                ),
                io.Vae.Input("vae", tooltip="The VAE of the VOSR model (Load VOSR VAE)."),
                io.ClipVision.Input(
                    "vision_encoder",
                    optional=True,
                    tooltip="DINOv2 (Load VOSR Vision Encoder). Leave unconnected for VOSR nano.",
                ),
                weak_strength_input(),
                *tile_inputs(512, 64),
                posterior_input(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    advanced=True,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Seed of the posterior sample. Has no effect with posterior mean.",
                ),
                vae_tile_input(),
                tile_grid_input("tile_size and tile_overlap"),
            ],
            outputs=[
                io.Conditioning.Output(display_name="full", tooltip="The full condition: positive."),
                io.Conditioning.Output(display_name="weak", tooltip="The weak condition: negative."),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of the size to sample, at denoise 1."),
                io.Int.Output(
                    display_name="width", tooltip="Width of the image before padding: crop the result to it."
                ),
                io.Int.Output(
                    display_name="height", tooltip="Height of the image before padding: crop the result to it."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, tile_size: int | None = None, tile_overlap: int | None = None, weak_strength: float | None = None
    ):
        # Values on wires are not known yet.
        if tile_size is not None and tile_overlap is not None:
            error = error_of(lambda: SquareTiles(tile_size, tile_overlap))
            if error:
                return error
        return weak_strength_error(weak_strength) or True

    @classmethod
    def execute(
        cls,
        image,
        vae,
        weak_strength: float,
        tile_size: int,
        tile_overlap: int,
        posterior: Posterior,
        seed: int,
        vae_tile_size: int,
        vision_encoder=None,
        tile_grid: TileLayout | None = None,
    ) -> io.NodeOutput:
        options = EncodeOptions(
            weak_strength=chosen_strength(weak_strength),
            tiles=SquareTiles(tile_size, tile_overlap) if tile_grid is None else tile_grid,
            posterior=posterior,
            seed=seed,
            vae_tile=vae_tile_size,
        )
        made = build_conditioning(image, vae, vision_encoder, options)
        return io.NodeOutput(made.full, made.weak, made.latent, made.width, made.height)


class RestorationCFGGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_RestorationCFGGuider",
            display_name="Restoration-CFG Guider",
            category=CATEGORY,
            description=(
                "VOSR's restoration-oriented guidance, weak + s (full - weak), for SamplerCustomAdvanced. Both "
                "conditions run in one batch; a condition the scale does not need is not run. One-step models have "
                "guidance built in: use scale 1."
            ),
            search_aliases=["vosr", "guidance", "cfg", "restoration", "weak condition", "guider"],
            inputs=[
                io.Model.Input("model", tooltip="A VOSR model (Load VOSR Model)."),
                io.Conditioning.Input("full", tooltip="The full condition of VOSR Conditioning."),
                io.Conditioning.Input("weak", tooltip="The weak condition of VOSR Conditioning."),
                scale_input(),
                *interval_inputs(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, full, weak, restoration_scale, guidance_start, guidance_end) -> io.NodeOutput:
        vosr_info(model).check_run(scale=restoration_scale)
        guidance = RestorationGuidance(restoration_scale, guidance_start, guidance_end)
        return io.NodeOutput(RestorationGuider(model, full, weak, guidance))


class RestorationCFGSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_RestorationCFGSampler",
            display_name="VOSR Restore (Restoration-CFG Sampler)",
            category=CATEGORY,
            description=(
                "VOSR in one node: enlarges, encodes, samples with restoration-oriented guidance, decodes and "
                "aligns colours. Images of any size and aspect ratio; larger ones run in blended tiles. Alpha is "
                "enlarged by itself and kept. Item i of a batch is what it would be alone with seed + i."
            ),
            search_aliases=[
                "vosr",
                "restore photo",
                "photo restoration",
                "image restoration",
                "upscale",
                "super resolution",
                "image super resolution",
                "real-world super resolution",
                "old photo",
                "old photo repair",
                "denoise photo",
                "denoise",
                "deblur",
                "enhance",
                "enhance photo",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A VOSR model (Load VOSR Model)."),
                io.Vae.Input("vae", tooltip="The VAE of that model (Load VOSR VAE)."),
                io.Image.Input("image", tooltip="Low-quality image or batch to restore."),
                io.ClipVision.Input(
                    "vision_encoder",
                    optional=True,
                    tooltip="DINOv2 (Load VOSR Vision Encoder). Leave unconnected for VOSR nano.",
                ),
                resize_input(),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=200,
                    tooltip=(
                        "Euler steps. 0: the model's own, 25 for multi-step and 1 for one-step models. A multi-step "
                        "model at 1 step gives a smooth average of the possible results; set restoration_scale to 1 "
                        "for it."
                    ),
                ),
                scale_input(),
                io.Int.Input(
                    "seed",
                    default=42,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Seed of the noise. Item i of a batch uses seed + i.",
                ),
                io.Combo.Input(
                    "color_alignment",
                    options=list(METHODS),
                    default="adain",
                    tooltip=(
                        "Takes colours from the input. adain: match mean and spread of each channel (the authors' "
                        "default). wavelet: take the blurred colours. none: leave the result as it is."
                    ),
                ),
                tiling_input(),
                weak_strength_input(),
                *interval_inputs(),
                posterior_input(),
                vae_tile_input(),
                tile_grid_input("tiling"),
                *tile_check_inputs("restoration_scale half a unit higher each time, which one-step models do not read"),
                preview_input(),
                mask_input(),
                preset_input(VOSR),
                wrap_input(),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The restored image at the target size.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        weak_strength: float | None = None,
        *,
        # The host passes every dynamic input, asked for or not.
        resize: Any = None,
        tiling: Any = None,
    ):
        return weak_strength_error(weak_strength) or True

    @classmethod
    def execute(
        cls,
        model,
        vae,
        image,
        resize: dict[str, Any],
        steps: int,
        restoration_scale: float,
        seed: int,
        color_alignment: Method,
        tiling: dict[str, Any],
        weak_strength: float,
        guidance_start: float,
        guidance_end: float,
        posterior: Posterior,
        vae_tile_size: int,
        vision_encoder=None,
        tile_grid: TileLayout | None = None,
        tile_check: str = TILE_CHECK_OFF,
        check_rounds: int = 2,
        preview: bool = True,
        mask=None,
        preset: str = CUSTOM,
        wrap: str = "none",
    ) -> io.NodeOutput:
        image = with_transparency(checked_image(image, "Restoration-CFG Sampler: "), mask, "Restoration-CFG Sampler: ")
        width, height = target_size(image, resize)
        scale = applied(VOSR, preset, {"restoration_scale": restoration_scale})["restoration_scale"]
        tiles = chosen_tiles(tiling) if tile_grid is None else tile_grid
        options = VOSRRestoreOptions(
            width=width,
            height=height,
            seed=seed,
            steps=steps,
            guidance=RestorationGuidance(scale, guidance_start, guidance_end),
            encode=EncodeOptions(
                chosen_strength(weak_strength), posterior=posterior, vae_tile=vae_tile_size, wrap=checked_wrap(wrap)
            ),
            tiles=tiles,
            color=color_alignment,
            repair=chosen_repair(tile_check, check_rounds),
            preview=preview,
        )
        require_possible(estimate(model, vae, vision_encoder, options))
        return io.NodeOutput(restore(model, vae, vision_encoder, image, options), ui=size_shown(image))


def tiling_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "tiling",
        tooltip=(
            "auto: square tiles of the model's training size, cut to the shorter side, with an eighth of "
            "overlap (16 pixels at least); a square no larger than one runs whole. off needs memory for "
            "the whole image and leaves the size the model was trained at."
        ),
        options=[
            io.DynamicCombo.Option(TILE_AUTO, []),
            io.DynamicCombo.Option(TILE_CUSTOM, list(tile_inputs(512, 64))),
            io.DynamicCombo.Option(TILE_OFF, []),
        ],
    )


def chosen_tiles(tiling: dict[str, Any]) -> SquareTiles | None:
    """Tiles the widget asks for; None to follow the model's training size. Raises ValueError for none of them."""
    tiling = read_choice(tiling_input(), tiling)
    if tiling["tiling"] == TILE_AUTO:
        return None
    if tiling["tiling"] == TILE_OFF:
        return SquareTiles(0, 0)
    return SquareTiles(tiling["tile_size"], tiling["tile_overlap"])


NODES = [RestorationCFGSampler, VOSRConditioning, RestorationCFGGuider]
