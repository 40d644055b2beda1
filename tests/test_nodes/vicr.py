"""Stand-in for CLIP ViT-L/14, which is too big for a test."""

from __future__ import annotations

import comfy.clip_vision
import torch
import torch.nn.functional as F
from comfy_api.latest import io

from .basic import CATEGORY

GRID = 8


class ProjectedImageEmbedding(io.ComfyNode):
    """What CLIP Vision Encode gives, by a random projection of the shrunken image: other images, other embeddings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealISRTest_ProjectedImageEmbedding",
            display_name="Projected Image Embedding",
            category=CATEGORY,
            inputs=[
                io.Image.Input("image"),
                io.Int.Input("seed", default=0),
                io.Int.Input("width", default=768, min=1),
            ],
            outputs=[io.ClipVisionOutput.Output()],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, seed: int, width: int) -> io.NodeOutput:
        generator = torch.Generator().manual_seed(seed)
        shrunken = F.adaptive_avg_pool2d(image[..., :3].movedim(-1, 1), GRID).flatten(1) - 0.5
        output = comfy.clip_vision.Output()
        output["image_embeds"] = shrunken @ torch.randn(3 * GRID * GRID, width, generator=generator) / GRID
        return io.NodeOutput(output)


NODES = [ProjectedImageEmbedding]
