"""VICR: the diptych to complete, the restored panel of it, FLUX Fill's noise levels, CLIP's global context
(arXiv 2606.00704)."""

from __future__ import annotations

from typing import Any, cast

from comfy_api.latest import io
from torch import Tensor

from ..host.images import checked_image
from ..host.types import Conditioning, Model
from ..host.vicr.bridge import apply_bridge
from ..models.vicr.diptych import LAYOUTS, Diptych, Layout, build_diptych, crop_target, nearest_to_square
from ..models.vicr.sigmas import BASE_SHIFT, MAX_SHIFT, flow_match_sigmas
from .inputs import resize_input, target_size
from .sockets import DiptychSocket

CATEGORY = "RealISR/VICR"
AUTO_LAYOUT = "auto"


class DiptychBuilder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_DiptychBuilder",
            display_name="Diptych Builder",
            category=CATEGORY,
            description=(
                "Enlarges the LQ image and sets it beside an empty panel of the same size, for FLUX Fill to complete. "
                "Connect canvas and mask to InpaintModelConditioning with noise_mask off, and the record to Diptych "
                "Crop. Any aspect ratio: panels are padded to multiples of 16 and cropped again. Alpha is enlarged by "
                "itself and rejoined by the crop. The detail that fills the panel is generated: it is no evidence of "
                "what the photo showed."
            ),
            search_aliases=["vicr", "diptych", "in-context", "flux fill", "canvas"],
            inputs=[
                io.Image.Input("image", tooltip="Low-quality image or batch to restore."),
                resize_input(),
                io.Combo.Input(
                    "layout",
                    options=[*LAYOUTS, AUTO_LAYOUT],
                    default=LAYOUTS[0],
                    tooltip=(
                        "Where the empty panel goes. side by side: to the right, as VICR was trained. stacked: below, "
                        "for wide images. auto: stacked for images wider than tall."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="canvas",
                    tooltip="LQ panel and empty panel, for InpaintModelConditioning's pixels. Without alpha.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="White over the empty panel, for InpaintModelConditioning. Turn its noise_mask off: the "
                    "model was not trained with the LQ panel put back at every step.",
                ),
                io.Image.Output(
                    display_name="lq_image",
                    tooltip="The enlarged LQ image alone, at the size of the result: to compare with, to caption, to "
                    "align colours to. Without alpha.",
                ),
                DiptychSocket.Output(
                    display_name="diptych", tooltip="Sizes, layout and alpha, for Diptych Crop and Diptych Tiles."
                ),
                io.Int.Output(display_name="width", tooltip="Width of the canvas in pixels."),
                io.Int.Output(display_name="height", tooltip="Height of the canvas in pixels."),
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, resize: dict[str, Any], layout: str) -> io.NodeOutput:
        """image: `[B, H, W, 3 or 4]` in 0..1. Raises ValueError for a size that cannot be made."""
        image = checked_image(image, "Diptych Builder: ")
        width, height = target_size(image, resize)
        chosen = nearest_to_square(width, height) if layout == AUTO_LAYOUT else cast(Layout, layout)
        made = build_diptych(image, width, height, chosen)
        diptych = made.diptych
        return io.NodeOutput(made.canvas, made.mask, made.lq, diptych, diptych.canvas_width, diptych.canvas_height)


class DiptychCrop(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_DiptychCrop",
            display_name="Diptych Crop",
            category=CATEGORY,
            description=(
                "Takes the restored panel out of a decoded diptych, exactly at the size asked for, and rejoins the "
                "alpha the LQ image came with."
            ),
            search_aliases=["vicr", "diptych", "crop", "restored panel", "split"],
            inputs=[
                io.Image.Input("image", tooltip="The decoded canvas: VAE Decode after the sampler."),
                DiptychSocket.Input("diptych", tooltip="The record of the Diptych Builder that made the canvas."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The restored image at the size asked for; with alpha if the LQ image had it.",
                )
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, diptych: Diptych) -> io.NodeOutput:
        """image: `[B, H, W, 3]` in 0..1. Raises ValueError for a canvas that the record does not belong to."""
        image = checked_image(image, "Diptych Crop: ")
        try:
            return io.NodeOutput(crop_target(image, diptych))
        except ValueError as error:
            raise ValueError(
                f"Diptych Crop: {error}. Connect the decoded canvas as it is, and the record of the builder it "
                "came from."
            ) from error


class FLUXFillSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_FLUXFillSigmas",
            display_name="FLUX Fill Sigmas",
            category=CATEGORY,
            description=(
                "The exact noise levels of diffusers' FLUX Fill pipeline, for SamplerCustomAdvanced: flow matching, "
                "shifted by the size of the latent. BasicScheduler's simple comes near, but moves a 30-step result "
                "visibly. Leave the model without ModelSamplingFlux."
            ),
            search_aliases=["vicr", "flux fill", "sigmas", "scheduler", "flow match euler", "dynamic shift"],
            inputs=[
                io.Latent.Input(
                    "latent",
                    tooltip=(
                        "InpaintModelConditioning's latent, or tile_latent of Diptych Tiles: what the model sees at "
                        "once, whose size sets the shift."
                    ),
                ),
                io.Int.Input("steps", default=30, min=1, max=1000, tooltip="Sampling steps. The paper uses 30."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    advanced=True,
                    tooltip=(
                        "Below 1, only the last steps of a longer schedule, to refine a canvas whose target panel is "
                        "filled already. VICR starts from noise: 1."
                    ),
                ),
                shift_input("base_shift", BASE_SHIFT, "256 image tokens (a canvas of 256x256 pixels)"),
                shift_input("max_shift", MAX_SHIFT, "4096 image tokens (1024x1024 pixels); it goes on rising beyond"),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="steps + 1 noise levels from 1 down to 0.")],
        )

    @classmethod
    def execute(
        cls, latent: dict[str, Any], steps: int, denoise: float, base_shift: float, max_shift: float
    ) -> io.NodeOutput:
        """Raises ValueError for a latent with a noise mask, and for one that is no image's."""
        if latent.get("noise_mask") is not None:
            raise ValueError(
                "FLUX Fill Sigmas: this latent has a noise mask, which makes the sampler put the LQ panel back at "
                "every step; FLUX Fill was not trained so and the result changes. Turn noise_mask off in "
                "InpaintModelConditioning."
            )
        samples = latent["samples"]
        if samples.ndim != 4:
            raise ValueError(
                f"FLUX Fill Sigmas: expected an image latent [B, C, H, W], got {list(samples.shape)}. Connect the "
                "latent of InpaintModelConditioning."
            )
        rows, columns = (-(-side // 2) for side in samples.shape[-2:])
        return io.NodeOutput(flow_match_sigmas(rows * columns, steps, base_shift, max_shift, denoise))


def shift_input(name: str, default: float, at: str) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=default,
        min=0.0,
        max=100.0,
        step=0.01,
        round=0.001,
        advanced=True,
        tooltip=f"Shift of the noise levels at {at}. FLUX's own: {default}.",
    )


class CLIPVisionContextBridge(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_CLIPVisionContextBridge",
            display_name="CLIP Vision-Context Bridge",
            category=CATEGORY,
            description=(
                "Adds CLIP's view of the whole LQ image to FLUX Fill's conditioning, through the bridge. Where it is "
                "added the paper leaves open; here the bridge's width decides it (see the help page and "
                "docs/open-decisions.md). Use both outputs: the conditioning carries the vector, the model reads it. "
                "Other conditionings stay as they are and batch with it. The model is a MODEL as before: LoRAs may "
                "come before or after."
            ),
            search_aliases=["vicr", "vcb", "bridge", "vision context", "clip vision", "image conditioning"],
            inputs=[
                io.Model.Input("model", tooltip="FLUX.1 Fill (Load Diffusion Model), with VICR's LoRA."),
                io.Conditioning.Input("conditioning", tooltip="The prompt, encoded with FLUX's text encoders."),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    tooltip=(
                        "The LQ image through CLIP Vision Encode with CLIP ViT-L/14. Set its crop to none to show CLIP "
                        "the whole image; center cuts a square out of it."
                    ),
                ),
                io.ModelPatch.Input(
                    "bridge",
                    tooltip="From Load Vision-Context Bridge. Its width says where it goes: 3072 to FLUX's modulation "
                    "vector, 768 to the pooled text, 4096 beside the text's tokens.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Factor on what the bridge gives. 1: as trained. 0: FLUX without it, exactly.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, able to read the conditioning's vector."),
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="The conditioning with the vector. Without the model output, FLUX ignores a vector meant "
                    "for its modulation.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model: Model, conditioning: Conditioning, clip_vision_output: Any, bridge: Model, strength: float
    ) -> io.NodeOutput:
        """Raises ValueError for parts that do not fit together."""
        return io.NodeOutput(*apply_bridge(model, conditioning, bridge, clip_vision_output, strength))


NODES = [DiptychBuilder, DiptychCrop, FLUXFillSigmas, CLIPVisionContextBridge]
