"""VICR's Vision-Context Bridge: load one, make an untrained one."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.vicr.loader import JOINS, bridge_choices, find_bridge, load_bridge, save_bridge, untrained
from .inputs import MAX_SEED, checked_choice
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
    def validate_inputs(cls, bridge_name: str | None = None) -> bool | str:
        return checked_choice(bridge_name, find_bridge)

    @classmethod
    def execute(cls, bridge_name: str) -> io.NodeOutput:
        """Raises ValueError for a file that is damaged or no bridge."""
        return io.NodeOutput(load_bridge(bridge_name))


class NewVisionContextBridge(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_NewVisionContextBridge",
            display_name="New Vision-Context Bridge",
            category=CATEGORY,
            description=(
                "Makes an untrained Vision-Context Bridge for a FLUX.1 model. Its output is zero: with it FLUX gives "
                "exactly what it gives without. The start of a training, and a check of a workflow."
            ),
            search_aliases=["vicr", "vcb", "bridge", "vision context", "model patch", "train", "create", "initialise"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Model.Input("model", tooltip="The FLUX.1 Fill model that the bridge is for; its widths are read."),
                io.Combo.Input(
                    "joins",
                    options=list(JOINS),
                    default="modulation vector",
                    tooltip=(
                        "What the bridge's vector is added to. modulation vector: as wide as FLUX (3072), which makes "
                        "the paper's number of parameters. pooled text: 768 wide."
                    ),
                ),
                io.Int.Input(
                    "hidden_size",
                    default=0,
                    min=0,
                    max=16384,
                    advanced=True,
                    tooltip="Width between the bridge's projections. 0: FLUX's, as fits the paper's parameter count.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    advanced=True,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Seed of the first projection; the last one is zero.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="",
                    advanced=True,
                    tooltip=(
                        "Folder and name under ComfyUI's output folder to save the bridge to, in float32; a number is "
                        "added. Empty: it is not saved."
                    ),
                ),
            ],
            outputs=[
                io.ModelPatch.Output(display_name="bridge", tooltip="The bridge, for CLIP Vision-Context Bridge.")
            ],
        )

    @classmethod
    def execute(cls, model, joins: str, hidden_size: int, seed: int, filename_prefix: str) -> io.NodeOutput:
        """Raises ValueError when the model is no FLUX.1."""
        bridge = untrained(model, joins, hidden_size, seed)
        if not filename_prefix.strip():
            return io.NodeOutput(bridge)
        workflow = {"prompt": cls.hidden.prompt, **(cls.hidden.extra_pnginfo or {})}
        path = save_bridge(bridge, filename_prefix, workflow)
        return io.NodeOutput(bridge, ui={"text": [str(path)]})


NODES = [LoadVisionContextBridge, NewVisionContextBridge]
