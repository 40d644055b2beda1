"""A view of where PURE was unsure."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..host.images import checked_image
from ..models.pure.heatmap import heat
from .pure_loaders import CATEGORY

FIXED_RANGE, AUTO_RANGE = "0 to ln 16384", "auto"
BRIGHT, DARK = "bright where unsure", "dark where unsure"


class EntropyHeatmap(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_EntropyHeatmap",
            display_name="Entropy Heatmap",
            category=CATEGORY,
            description=(
                "Colours the entropy of AR Token Restorer: dark where the model was certain of a token, bright where "
                "many codes would have done. The paper's figure 3 is the other way round, darker where entropy is "
                "higher: choose dark where unsure for that. Over an image if one is connected."
            ),
            search_aliases=["pure", "entropy", "uncertainty", "heat map", "colormap", "false colour"],
            inputs=[
                io.Mask.Input("entropy", tooltip="The entropy of AR Token Restorer, or any mask."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Lay the map over this image; the map takes its size. Alpha is left out.",
                ),
                io.Combo.Input(
                    "value_range",
                    options=[FIXED_RANGE, AUTO_RANGE],
                    default=FIXED_RANGE,
                    tooltip=(
                        "0 to ln 16384: the same colours mean the same entropy in every image. auto: stretched to the "
                        "least and largest value of each image."
                    ),
                ),
                io.Float.Input(
                    "opacity",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How much of the map covers the image. Without an image it has no effect.",
                ),
                io.Combo.Input(
                    "direction",
                    options=[BRIGHT, DARK],
                    default=BRIGHT,
                    optional=True,
                    tooltip=(
                        "Which end of the colours stands for high entropy. dark where unsure: as in the paper's "
                        "figure 3."
                    ),
                ),
            ],
            outputs=[io.Image.Output(display_name="heatmap", tooltip="The map in colours.")],
        )

    @classmethod
    def execute(cls, entropy, value_range: str, opacity: float, image=None, direction: str = BRIGHT) -> io.NodeOutput:
        image = None if image is None else checked_image(image, "Entropy Heatmap: ")[..., :3]
        values = stretched(entropy.float()) if value_range == AUTO_RANGE else entropy.float()
        values = 1 - values if direction == DARK else values
        if image is None:
            return io.NodeOutput(heat(values))
        return io.NodeOutput(torch.lerp(image, heat(fitted(values, image)).to(image), opacity))


def stretched(values: torch.Tensor) -> torch.Tensor:
    """Maps `[B, H, W]` brought to 0..1 one by one; a map of one value to 0."""
    low, high = values.amin(dim=(1, 2), keepdim=True), values.amax(dim=(1, 2), keepdim=True)
    return (values - low) / (high - low).clamp(min=1e-6)


def fitted(values: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Maps `[B, H, W]` at the size and batch of images. Raises ValueError for batches that do not go together."""
    if values.shape[0] not in (1, image.shape[0]) and image.shape[0] != 1:
        raise ValueError(
            f"There are {values.shape[0]} entropy maps and {image.shape[0]} images: connect as many images as maps, "
            "or one."
        )
    if values.shape[1:] == image.shape[1:3]:
        return values
    return torch.nn.functional.interpolate(values[:, None], image.shape[1:3], mode="bilinear", antialias=True)[:, 0]


NODES = [EntropyHeatmap]
