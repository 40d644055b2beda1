"""VICR's global stream: the Vision-Context Bridge from CLIP's view of the image to FLUX (arXiv 2606.00704)."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.vicr.bridge import apply_bridge
from ..host.vicr.loader import bridge_choices, load_bridge

CATEGORY = "RealISR/VICR"


class LoadVisionContextBridge(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_LoadVisionContextBridge",
            display_name="Load Vision-Context Bridge",
            category=CATEGORY,
            description=(
                "Loads VICR's Vision-Context Bridge from models/model_patches: the small network that turns CLIP's "
                "view of the LQ image into global context for FLUX. Both widths work, and are read from the file."
            ),
            search_aliases=["vicr", "vcb", "bridge", "vision context", "model patch", "clip vision"],
            inputs=[
                io.Combo.Input(
                    "bridge_name",
                    options=bridge_choices(),
                    tooltip="A bridge in models/model_patches: norm, proj_in, proj_out and scale.",
                )
            ],
            outputs=[
                io.ModelPatch.Output(display_name="bridge", tooltip="The bridge, for CLIP Vision-Context Bridge.")
            ],
        )

    @classmethod
    def execute(cls, bridge_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_bridge(bridge_name))


class CLIPVisionContextBridge(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_CLIPVisionContextBridge",
            display_name="CLIP Vision-Context Bridge",
            category=CATEGORY,
            description=(
                "Adds CLIP's view of the whole LQ image to FLUX Fill's conditioning, through the bridge. Use both "
                "outputs: the conditioning carries the vector, the model reads it. Other conditionings stay as they "
                "are and batch with it. The model is a MODEL as before: LoRAs may come before or after."
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
                io.ModelPatch.Input("bridge", tooltip="From Load Vision-Context Bridge."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Factor on the bridge's vector. 1: as trained. 0: FLUX without it, exactly.",
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
    def execute(cls, model, conditioning, clip_vision_output, bridge, strength: float) -> io.NodeOutput:
        return io.NodeOutput(*apply_bridge(model, conditioning, bridge, clip_vision_output, strength))


NODES = [LoadVisionContextBridge, CLIPVisionContextBridge]
