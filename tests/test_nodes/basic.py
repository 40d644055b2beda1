"""Random stand-ins for what needs big models, and nodes that measure or wait."""

from __future__ import annotations

import time
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io

CATEGORY = "RealISR tests"


class RandomConditioning(io.ComfyNode):
    """Text conditioning without a text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealISRTest_RandomConditioning",
            display_name="Random Conditioning",
            category=CATEGORY,
            inputs=[
                io.Int.Input("seed", default=0),
                io.Int.Input("tokens", default=8, min=1),
                io.Int.Input("width", default=64, min=1),
                io.Int.Input("pooled_width", default=768, min=1),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, seed: int, tokens: int, width: int, pooled_width: int) -> io.NodeOutput:
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(1, tokens, width, generator=generator)
        pooled = torch.randn(1, pooled_width, generator=generator)
        return io.NodeOutput([[text, {"pooled_output": pooled}]])


class RandomImage(io.ComfyNode):
    """Smooth random colours: something for a restorer to look at without a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealISRTest_RandomImage",
            display_name="Random Image",
            category=CATEGORY,
            inputs=[
                io.Int.Input("seed", default=0),
                io.Int.Input("width", default=64, min=1),
                io.Int.Input("height", default=64, min=1),
                io.Int.Input("batch", default=1, min=1),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, seed: int, width: int, height: int, batch: int) -> io.NodeOutput:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(batch, 3, 6, 6, generator=generator)
        image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
        return io.NodeOutput(image.clamp(0, 1).movedim(1, -1))


class MeasureLatent(io.ComfyNode):
    """Ends a graph that makes a latent, and says what is in it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealISRTest_MeasureLatent",
            display_name="Measure Latent",
            category=CATEGORY,
            is_output_node=True,
            inputs=[io.Latent.Input("latent")],
            outputs=[],
        )

    @classmethod
    def execute(cls, latent) -> io.NodeOutput:
        samples = latent["samples"].float()
        finite = bool(samples.isfinite().all())
        return io.NodeOutput(
            ui={
                "latent": [
                    {
                        "shape": list(samples.shape),
                        "mean": samples.mean().item(),
                        "std": samples.std().item(),
                        "finite": finite,
                    }
                ]
            }
        )


class KeepImage(io.ComfyNode):
    """Writes an image as it is, unrounded, into the output folder: `<name>.npy`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealISRTest_KeepImage",
            display_name="Keep Image",
            category=CATEGORY,
            is_output_node=True,
            not_idempotent=True,
            inputs=[io.Image.Input("image"), io.String.Input("name")],
            outputs=[],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, name: str) -> io.NodeOutput:
        np.save(Path(folder_paths.get_output_directory()) / f"{name}.npy", image.float().cpu().numpy())
        return io.NodeOutput()


class Wait(io.ComfyNode):
    """Takes its time, shows progress, and stops when it is told to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealISRTest_Wait",
            display_name="Wait",
            category=CATEGORY,
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                io.Float.Input("seconds", default=1.0, min=0.1, max=600.0),
                io.Image.Input("image", optional=True),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, seconds: float, image: torch.Tensor | None = None) -> io.NodeOutput:
        steps = round(seconds / 0.1)
        bar = comfy.utils.ProgressBar(steps)
        for _ in range(steps):
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.1)
            bar.update(1)
        return io.NodeOutput(image)


NODES = [RandomConditioning, RandomImage, MeasureLatent, KeepImage, Wait]
