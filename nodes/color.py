"""Colour repair after restoration."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..models.color import METHODS, Method, align_colors


class AlignColors(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_AlignColors",
            display_name="Align Colors",
            category="RealISR/Color",
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
        for name, images in (("image", image), ("reference", reference)):
            if not torch.isfinite(images).all():
                raise ValueError(
                    f"Align Colors: the {name} holds values that are not numbers (NaN or infinite). Look at the "
                    "output of the node before this one; often a half-precision VAE is the cause (--fp32-vae)."
                )
        return io.NodeOutput(align_colors(image, reference, method))


NODES = [AlignColors]
