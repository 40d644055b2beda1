"""Loader of VICR's Vision-Context Bridge."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.vicr.loader import bridge_choices, load_bridge
from .vicr import CATEGORY


class LoadVisionContextBridge(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_LoadVisionContextBridge",
            display_name="Load Vision-Context Bridge",
            category=CATEGORY,
            description=(
                "Loads VICR's Vision-Context Bridge from models/model_patches: the small network that turns CLIP's "
                "view of the LQ image into global context for FLUX. Its widths are read from the file, and say where "
                "it goes. 'none' needs no file: CLIP's own vector joins the pooled text, as in an ablation of the "
                "paper (arXiv 2606.00704)."
            ),
            search_aliases=["vicr", "vcb", "bridge", "vision context", "model patch", "clip vision"],
            inputs=[
                io.Combo.Input(
                    "bridge_name",
                    options=bridge_choices(),
                    tooltip="A bridge in models/model_patches: norm, proj_in, proj_out and scale. none: CLIP's vector "
                    "without a bridge, for comparison.",
                )
            ],
            outputs=[
                io.ModelPatch.Output(display_name="bridge", tooltip="The bridge, for CLIP Vision-Context Bridge.")
            ],
        )

    @classmethod
    def execute(cls, bridge_name: str) -> io.NodeOutput:
        """Raises ValueError for a file that is damaged or no bridge."""
        return io.NodeOutput(load_bridge(bridge_name))


NODES = [LoadVisionContextBridge]
