"""What serves images before and after any restoration: enlargement, colour repair, degradation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..host.images import checked_image
from ..models.color import METHODS, Method, align_colors
from ..models.degradation.real_world import FIRST_ROUND, SECOND_ROUND, RealWorldDegradation
from ..models.degradation.simple import SimpleDegradation
from ..models.image import upscale
from .inputs import MAX_SEED, read_choice, resize_input, target_size

CATEGORY = "RealISR/Image"


class AlignColors(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_AlignColors",
            display_name="Align Colors",
            category=CATEGORY,
            description=(
                "Gives a restored image the colours of the image it was restored from. Generative restorers often "
                "shift hue or brightness; this removes the shift and keeps the restored detail."
            ),
            search_aliases=["color fix", "color correction", "color match", "wavelet", "adain", "colour", "tint"],
            inputs=[
                io.Image.Input("image", tooltip="The restored image or batch. Its alpha channel, if any, is kept."),
                io.Image.Input(
                    "reference",
                    tooltip="The image whose colours are right, usually the low-quality input or its enlargement. One "
                    "for the whole batch, or one per image; any size, but it must show the same picture.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="adain",
                    tooltip="adain: match mean and contrast of each colour channel over the whole image; removes a "
                    "tint. wavelet: take the low frequencies (blur radius 20 pixels) from the reference; also repairs "
                    "local shifts, but brings back low-frequency flaws of the reference. none: change nothing.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The image with aligned colours, of unchanged size.")
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, reference: torch.Tensor, method: Method) -> io.NodeOutput:
        image = checked_image(image, "Align Colors (image): ")
        reference = checked_image(reference, "Align Colors (reference): ")
        return io.NodeOutput(align_colors(image, reference, method))


SIMPLE, FIRST_ORDER, SECOND_ORDER = "simple", "real-world (first order)", "real-world (second order)"
LOW_RESOLUTION, INPUT_SIZE = "low resolution", "input size"


class DegradeImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_DegradeImage",
            display_name="Degrade Image",
            category=CATEGORY,
            description=(
                "Blurs, shrinks, adds noise and compresses: test inputs for restorers, with the original at hand to "
                "compare with. The real-world modes draw everything at random, as the degradation that Real-ESRGAN "
                "introduced and VOSR trains on."
            ),
            search_aliases=["blur", "noise", "jpeg", "compression", "low quality", "downscale", "real-esrgan", "lq"],
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="Clean image or batch. Alpha is not degraded, only resized when the size changes.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Seed of every random choice. Image i of a batch uses seed + i, as when degraded alone.",
                ),
                io.Float.Input(
                    "scale",
                    default=4.0,
                    min=1.0,
                    max=8.0,
                    step=0.25,
                    round=0.001,
                    tooltip="How many times smaller the image becomes. 1 keeps its size.",
                ),
                degradation_input(),
                io.Combo.Input(
                    "output_size",
                    options=[LOW_RESOLUTION, INPUT_SIZE],
                    default=LOW_RESOLUTION,
                    tooltip="low resolution: the shrunk image. input size: enlarged back with Pillow's bicubic, to lay "
                    "over the original.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The degraded image or batch; with low resolution, its sides are the input's divided by "
                    "scale, rounded.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, image: torch.Tensor, seed: int, scale: float, degradation: dict[str, Any], output_size: str
    ) -> io.NodeOutput:
        image = checked_image(image, "Degrade Image: ")
        degrade = make_degradation(degradation, scale)
        items = [degrade_item(item, degrade, (seed + i) % (MAX_SEED + 1)) for i, item in enumerate(image.split(1))]
        low = torch.cat(items)
        if image.shape[-1] == 4:
            alpha = upscale(image[..., 3:], low.shape[2], low.shape[1])
            low = torch.cat([low, alpha], dim=-1)
        if output_size == INPUT_SIZE:
            low = upscale(low, image.shape[2], image.shape[1])
        return io.NodeOutput(low)


def simple_inputs() -> list[Any]:
    return [
        io.Float.Input(
            "blur_sigma",
            default=0.0,
            min=0.0,
            max=10.0,
            step=0.1,
            round=0.01,
            tooltip="Gaussian blur before shrinking: standard deviation in pixels of the input. 0: none.",
        ),
        io.Float.Input(
            "noise_sigma",
            default=10.0,
            min=0.0,
            max=100.0,
            step=0.5,
            round=0.01,
            tooltip="Gaussian noise after shrinking: standard deviation in levels of 255. 0: none.",
        ),
        io.Int.Input(
            "jpeg_quality",
            default=70,
            min=0,
            max=100,
            tooltip="JPEG quality from 1 (worst) to 100, as the last step. 0: no JPEG.",
        ),
    ]


def degradation_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "degradation",
        tooltip="simple: blur, bicubic shrinking, Gaussian noise and JPEG of known strength. real-world: "
        "random kernels, resizes, Gaussian or Poisson noise and JPEG, once (first order) or twice.",
        options=[
            io.DynamicCombo.Option(SECOND_ORDER, []),
            io.DynamicCombo.Option(FIRST_ORDER, []),
            io.DynamicCombo.Option(SIMPLE, simple_inputs()),
        ],
    )


def make_degradation(degradation: dict[str, Any], scale: float) -> SimpleDegradation | RealWorldDegradation:
    """What the widget asks for. Raises ValueError for no kind of degradation."""
    degradation = read_choice(degradation_input(), degradation)
    mode = degradation["degradation"]
    if mode == SIMPLE:
        quality = degradation["jpeg_quality"]
        return SimpleDegradation(scale, degradation["blur_sigma"], degradation["noise_sigma"] / 255, quality or None)
    return RealWorldDegradation(scale, (FIRST_ROUND,) if mode == FIRST_ORDER else (FIRST_ROUND, SECOND_ROUND))


def degrade_item(item: torch.Tensor, degrade: SimpleDegradation | RealWorldDegradation, seed: int) -> torch.Tensor:
    """One image `[1, H, W, 3 or 4]` -> `[1, h, w, 3]`; random numbers come from the CPU, so devices agree."""
    generator = torch.Generator().manual_seed(seed)
    low = degrade(item[..., :3].movedim(-1, 1).float(), generator)
    return low.movedim(1, -1).to(item.dtype).contiguous()


class UpscaleForRestoration(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_UpscaleForRestoration",
            display_name="Upscale for Restoration",
            category=CATEGORY,
            description=(
                "Enlarges an image with Pillow's bicubic filter, which the restoration models' own scripts use. "
                "Other bicubic filters differ by up to 7 grey levels, and a one-step model amplifies that. Alpha is "
                "enlarged too."
            ),
            search_aliases=["bicubic", "resize", "pillow", "pil", "enlarge image"],
            inputs=[
                io.Image.Input("image", tooltip="Image or batch to enlarge."),
                resize_input(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The enlarged image, to restore and to align colours with."
                )
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, resize: dict) -> io.NodeOutput:
        image = checked_image(image, "Upscale for Restoration: ")
        return io.NodeOutput(upscale(image, *target_size(image, resize)))


PHOTOS = Path(__file__).resolve().parent.parent / "workflows" / "photos"
"""Photos that come with the pack; its README.md says whose they are."""


class ExamplePhoto(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_ExamplePhoto",
            display_name="Example Photo",
            category=CATEGORY,
            description=(
                "A photo that comes with the pack, so that an example runs before any file is chosen. Put Load Image "
                "in its place for a photo of your own."
            ),
            search_aliases=["sample image", "test image", "demo", "moose"],
            inputs=[
                io.Combo.Input(
                    "photo",
                    options=["moose"],
                    default="moose",
                    tooltip="moose: 768 by 512, fur and grass before a blurred wood (Ryan Hagerty, U.S. Fish and "
                    "Wildlife Service, public domain).",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The photo.")],
        )

    @classmethod
    def execute(cls, photo: str) -> io.NodeOutput:
        with Image.open(PHOTOS / f"{photo}.jpg") as file:
            pixels = np.asarray(file.convert("RGB"), np.float32) / 255
        return io.NodeOutput(torch.from_numpy(pixels)[None])


NODES = [UpscaleForRestoration, AlignColors, DegradeImage, ExamplePhoto]
