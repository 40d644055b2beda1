"""Plain enlargement ahead of restoration."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..models.resize import upscale
from .sizes import resize_input, target_size


class UpscaleForRestoration(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_UpscaleForRestoration",
            display_name="Upscale for Restoration",
            category="RealISR/Image",
            description=(
                "Enlarges an image with Pillow's bicubic filter, which the restoration models' own scripts use. "
                "Other bicubic filters differ by up to 7 grey levels, and a one-step model amplifies that. Alpha is "
                "enlarged too."
            ),
            search_aliases=["bicubic", "resize", "pillow", "pil", "upscale image", "super resolution"],
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
        return io.NodeOutput(upscale(image, *target_size(image, resize)))


NODES = [UpscaleForRestoration]
