"""PURE: perceive, understand, restore token by token (arXiv 2503.11073)."""

from __future__ import annotations

import math
from typing import Any

from comfy_api.latest import io

from ..host.estimate import require_possible
from ..host.images import checked_image, with_transparency
from ..host.pure.estimate import estimate
from ..host.pure.restore import PURERestoreOptions, Tiles, restore
from ..models.presets import CUSTOM, PURE, applied
from ..models.pure.logits import TokenSampling
from ..models.pure.options import AnswerParts, GenerationOptions
from ..models.pure.prompt import INSTRUCTION, PLACEHOLDER
from ..models.pure.vocabulary import IMAGE_TOKENS
from .inputs import (
    MAX_SEED,
    TILE_CHECK_OFF,
    chosen_repair,
    mask_input,
    read_choice,
    resize_input,
    size_shown,
    target_size,
    tile_check_inputs,
)
from .presets import preset_input
from .pure_loaders import CATEGORY
from .sockets import ARRestorerSocket, TokenGridSocket

MAX_ENTROPY = math.log(IMAGE_TOKENS)
"""Nats of all codes being equally likely."""

ENTROPY_TOP_K, FIXED_TOP_K, OBSERVED_MU = "entropy top-k", "fixed top-k", "entropy top-k, observed mu"
SEQUENTIAL, JACOBI = "sequential", "speculative Jacobi"
TILE_AUTO, TILE_CUSTOM, TILE_OFF = "auto", "custom", "off"
SHARED, PER_TILE = "shared", "per tile"
ANSWERS: dict[str, AnswerParts] = {
    "full": "full",
    "perception only": "perception",
    "understanding only": "understanding",
    "none": "none",
}
WITH_DESCRIPTION = ("full", "understanding only")


def k_inputs() -> list[Any]:
    return [
        io.Int.Input(
            "k_min",
            default=1,
            min=1,
            max=IMAGE_TOKENS,
            tooltip=(
                "Lower end of k = k_min + (k_max - k_min) / (1 + exp(mu - H)), the codes to draw from at entropy H. "
                "It is approached, not reached: with mu 5 and k_max 2000, 1 gives 14 codes at no entropy at all."
            ),
        ),
        io.Int.Input(
            "k_max",
            default=2000,
            min=1,
            max=IMAGE_TOKENS,
            tooltip=(
                "Upper end of the same rule, approached at high entropy: with mu 5, 2000 gives 1982 codes where all "
                "codes are equally likely."
            ),
        ),
    ]


def sampling_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "sampling",
        tooltip=(
            "How many of the likeliest codes a token is drawn from. entropy top-k: many where the model is unsure "
            "(texture), few where it is certain (structure). fixed top-k: the same number everywhere. observed mu: "
            "entropy top-k with the mu of the paper's text, where the authors' code has 5: the standard deviation of "
            "the entropy of the tokens drawn so far in the image (5 for the first two)."
        ),
        options=[
            io.DynamicCombo.Option(
                ENTROPY_TOP_K,
                [
                    *k_inputs(),
                    io.Float.Input(
                        "mu",
                        default=5.0,
                        min=0.0,
                        max=10.0,
                        step=0.1,
                        round=0.001,
                        tooltip="Entropy in nats at which the number is halfway between k_min and k_max.",
                    ),
                ],
            ),
            io.DynamicCombo.Option(
                FIXED_TOP_K,
                [
                    io.Int.Input(
                        "top_k",
                        default=2000,
                        min=1,
                        max=IMAGE_TOKENS,
                        tooltip="Codes to draw from, for every token. 1 takes the likeliest: smooth and repetitive.",
                    )
                ],
            ),
            io.DynamicCombo.Option(OBSERVED_MU, k_inputs()),
        ],
    )


def decoding_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "decoding",
        tooltip=(
            "sequential: one token after another. speculative Jacobi: guesses a window of tokens, checks them in one "
            "pass and keeps those that pass an exact test, so results follow the same distribution in fewer passes. "
            "The same seed gives another image than sequential."
        ),
        options=[
            io.DynamicCombo.Option(SEQUENTIAL, []),
            io.DynamicCombo.Option(
                JACOBI,
                [io.Int.Input("window", default=16, min=2, max=64, tooltip="Tokens guessed and checked at a time.")],
            ),
        ],
    )


def tiling_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "tiling",
        tooltip=(
            "The model writes squares of 512 pixels. auto: overlapping squares over larger results, blended; a side "
            "shorter than 512 is stretched to it and brought back, as the authors do. off: the whole image in one "
            "square, whatever its shape and size."
        ),
        options=[
            io.DynamicCombo.Option(TILE_AUTO, []),
            io.DynamicCombo.Option(
                TILE_CUSTOM,
                [
                    io.Int.Input(
                        "tile_size",
                        default=512,
                        min=32,
                        max=512,
                        step=32,
                        tooltip="Side of the squares in pixels. Trained at 512; less is quicker and worse.",
                    ),
                    io.Int.Input(
                        "tile_overlap", default=64, min=0, max=480, step=8, tooltip="Pixels neighbouring squares share."
                    ),
                ],
            ),
            io.DynamicCombo.Option(TILE_OFF, []),
        ],
    )


def text_inputs() -> list[Any]:
    return [
        io.String.Input(
            "description",
            default="",
            multiline=True,
            tooltip="What the image shows, in your words. Empty: the model writes a description itself.",
        ),
        io.Combo.Input(
            "guidance",
            options=list(ANSWERS),
            default="full",
            tooltip=(
                "What the model says before it draws. full: a sentence on the degradation, then a description. "
                "perception only: the sentence. understanding only: the description. none: it draws at once. "
                "The ablations of the paper's table 5, made with one model."
            ),
        ),
        io.Combo.Input(
            "tile_description",
            options=[SHARED, PER_TILE],
            default=SHARED,
            tooltip=(
                "For results of several tiles. shared: one description, written from the whole image. per tile: each "
                "tile gets its own."
            ),
        ),
    ]


def expert_inputs() -> list[Any]:
    return [
        io.Float.Input(
            "temperature",
            default=0.9,
            min=0.05,
            max=2.0,
            step=0.05,
            round=0.001,
            advanced=True,
            tooltip="Divides the logits before a token is drawn. Lower is smoother, higher invents more.",
        ),
        io.Float.Input(
            "guidance_scale",
            default=0.8,
            min=0.0,
            max=4.0,
            step=0.05,
            round=0.001,
            advanced=True,
            tooltip=(
                "Classifier-free guidance s in u + s (c - u) on the logits of image tokens; u has seen neither the "
                "input nor the text. 0.8 is the authors' value; 1 needs one branch only and less memory."
            ),
        ),
        io.Int.Input(
            "text_top_k",
            default=1,
            min=1,
            max=1000,
            advanced=True,
            tooltip="Words the text is drawn from at each place. 1: always the likeliest.",
        ),
        io.Int.Input(
            "max_text_tokens",
            default=512,
            min=16,
            max=4096,
            advanced=True,
            tooltip="A model that has not begun its image after so many text tokens is stopped with an error.",
        ),
        io.String.Input(
            "instruction",
            default=INSTRUCTION,
            multiline=True,
            advanced=True,
            tooltip="What the model is told; the image follows it. It was trained with this sentence only.",
        ),
        io.Int.Input(
            "batch_size",
            default=0,
            min=0,
            max=64,
            advanced=True,
            tooltip=(
                "Images or tiles drawn at the same time: nearly as quick as one, and each needs up to 7 GB at 512 "
                "pixels. 0: as many as fit."
            ),
        ),
        io.Boolean.Input(
            "preview",
            default=True,
            advanced=True,
            tooltip="Show the rows drawn so far, about every second. Does not change the result.",
        ),
    ]


class ARTokenRestorer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_ARTokenRestorer",
            display_name="PURE Restore (Entropy AR Token Restorer)",
            category=CATEGORY,
            description=(
                "PURE: names the degradation, describes the image, and draws the restored one token by token, 4096 "
                "for each 512 x 512 pixels. Larger results are drawn in blended tiles. Alpha is enlarged by itself "
                "and kept. Item i of a batch is what it would be alone with seed + i."
            ),
            search_aliases=[
                "pure",
                "autoregressive",
                "ai upscale",
                "image super resolution",
                "restore old photo",
                "denoise old photo",
                "photo enhancement",
            ],
            inputs=[
                ARRestorerSocket.Input("model", tooltip="PURE (Load PURE Model)."),
                io.Image.Input("image", tooltip="Low-quality image or batch to restore."),
                resize_input(),
                *text_inputs(),
                io.Int.Input(
                    "seed",
                    default=42,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Seed of the draws. Item i of a batch uses seed + i.",
                ),
                sampling_input(),
                decoding_input(),
                tiling_input(),
                io.Boolean.Input(
                    "color_fix",
                    default=True,
                    tooltip="Take the blurred colours from the input (wavelet), as the authors always do.",
                ),
                *expert_inputs(),
                *tile_check_inputs("temperature a fifth lower each time"),
                mask_input(),
                preset_input(PURE),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The restored image at the target size."),
                io.String.Output(
                    display_name="degradation",
                    tooltip="What the model says is wrong with the input, a line for each image.",
                ),
                io.String.Output(
                    display_name="description", tooltip="What the model says the image shows, a line for each image."
                ),
                io.Mask.Output(
                    display_name="entropy",
                    tooltip=(
                        "How unsure the model was of each token: 0 certain, 1 every code equally likely (entropy / "
                        "ln 16384). For Entropy Heatmap, or as a mask."
                    ),
                ),
                TokenGridSocket.Output(
                    display_name="tokens",
                    tooltip=(
                        "The image codes drawn, 0 to 16383, row by row for each tile, to keep or compare: connect "
                        "Preview as Text."
                    ),
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        description: str | None = "",
        guidance: str | None = "full",
        *,
        # The host passes every dynamic input, asked for or not; one that is asked for it would blame, too.
        resize=None,
        sampling=None,
        decoding=None,
        tiling=None,
    ):
        # A linked input is None here and is checked when the node runs.
        return text_error(description or "", guidance or "full", INSTRUCTION) or True

    @classmethod
    def execute(
        cls,
        model,
        image,
        resize: dict[str, Any],
        description: str,
        guidance: str,
        tile_description: str,
        seed: int,
        sampling: dict[str, Any],
        decoding: dict[str, Any],
        tiling: dict[str, Any],
        color_fix: bool,
        temperature: float,
        guidance_scale: float,
        text_top_k: int,
        max_text_tokens: int,
        instruction: str,
        batch_size: int,
        preview: bool,
        tile_check: str = TILE_CHECK_OFF,
        check_rounds: int = 2,
        mask=None,
        preset: str = CUSTOM,
    ) -> io.NodeOutput:
        if error := text_error(description, guidance, instruction):
            raise ValueError(error)
        image = with_transparency(checked_image(image, "AR Token Restorer: "), mask, "AR Token Restorer: ")
        width, height = target_size(image, resize)
        temperature = applied(PURE, preset, {"temperature": temperature})["temperature"]
        options = PURERestoreOptions(
            width=width,
            height=height,
            seed=seed,
            generation=GenerationOptions(
                guidance_scale=guidance_scale,
                sampling=chosen_sampling(sampling, temperature),
                text_top_k=text_top_k,
                max_text_tokens=max_text_tokens,
                parts=ANSWERS[guidance],
                **chosen_decoding(decoding),
            ),
            tiles=chosen_tiles(tiling),
            instruction=instruction,
            description=description.strip(),
            shared_description=tile_description == SHARED,
            color_fix=color_fix,
            preview=preview,
            together=batch_size,
            repair=chosen_repair(tile_check, check_rounds),
        )
        require_possible(estimate(model, options))
        restored = restore(model, image, options)
        entropy = (restored.entropy / MAX_ENTROPY).clamp(0, 1)
        return io.NodeOutput(
            restored.image,
            restored.degradation,
            restored.description,
            entropy,
            restored.tokens,
            ui=size_shown(image),
        )


def text_error(description: str, guidance: str, instruction: str) -> str | None:
    """What is wrong with the texts, if anything."""
    if guidance not in ANSWERS:
        return f"Unknown guidance '{guidance}': choose one of {', '.join(ANSWERS)}."
    if description.strip() and guidance not in WITH_DESCRIPTION:
        return (
            f"There is a description, and guidance '{guidance}' gives the model none. Empty the description, or choose "
            f"{' or '.join(WITH_DESCRIPTION)}."
        )
    if instruction.count(PLACEHOLDER) > 1:
        return f"The instruction has {PLACEHOLDER} {instruction.count(PLACEHOLDER)} times; the model reads one image."
    return None


def chosen_sampling(sampling: dict[str, Any], temperature: float) -> TokenSampling:
    sampling = read_choice(sampling_input(), sampling)
    if sampling["sampling"] == FIXED_TOP_K:
        return TokenSampling(top_k=sampling["top_k"], temperature=temperature)
    k = {"k_min": sampling["k_min"], "k_max": sampling["k_max"], "temperature": temperature}
    if sampling["sampling"] == OBSERVED_MU:
        return TokenSampling(**k, observed_mu=True)
    return TokenSampling(**k, mu=sampling["mu"])


def chosen_decoding(decoding: dict[str, Any]) -> dict[str, Any]:
    decoding = read_choice(decoding_input(), decoding)
    if decoding["decoding"] == SEQUENTIAL:
        return {"decoding": "sequential"}
    return {"decoding": "jacobi", "window": decoding["window"]}


def chosen_tiles(tiling: dict[str, Any]) -> Tiles:
    tiling = read_choice(tiling_input(), tiling)
    if tiling["tiling"] == TILE_CUSTOM:
        return Tiles(tiling["tile_size"], tiling["tile_overlap"])
    return Tiles(whole=tiling["tiling"] == TILE_OFF)


NODES = [ARTokenRestorer]
