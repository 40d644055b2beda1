"""MM-ControlNet of DreamSR: load, apply, initialise, save (arXiv 2605.15682)."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.dreamsr.control.apply import apply_mm_control
from ..host.dreamsr.control.conditioning import ApplyOptions
from ..host.dreamsr.control.initialise import DTYPES, initialise_mm_control, parse_blocks
from ..host.dreamsr.control.loader import control_choices, find_control, load_mm_control, save_mm_control
from ..host.precision import WEIGHT_DTYPES
from .inputs import MAX_SEED, checked_choice
from .sockets import MMControlNetSocket

CATEGORY = "RealISR/DreamSR"


class LoadMMControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_LoadMMControlNet",
            display_name="Load MM-ControlNet",
            category=CATEGORY,
            description=(
                "Loads a DreamSR MM-ControlNet, the dual-branch control network for FLUX.1-dev, from "
                "models/controlnet. Ordinary ControlNets go through ComfyUI's own loader."
            ),
            search_aliases=["dreamsr", "controlnet", "mm-controlnet", "load controlnet", "flux"],
            inputs=[
                io.Combo.Input(
                    "control_name",
                    options=control_choices(),
                    tooltip="A .safetensors file in models/controlnet with the tensors of an MM-ControlNet.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip=(
                        "Precision of the weights in memory. default: what ComfyUI picks for this device and file. "
                        "fp8 halves the memory."
                    ),
                ),
            ],
            outputs=[
                MMControlNetSocket.Output(display_name="mm_controlnet", tooltip="For Apply MM-ControlNet."),
            ],
        )

    @classmethod
    def validate_inputs(cls, control_name: str | None = None) -> bool | str:
        return checked_choice(control_name, find_control)

    @classmethod
    def execute(cls, control_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load_mm_control(control_name, weight_dtype))


class ApplyMMControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_ApplyMMControlNet",
            display_name="Apply MM-ControlNet",
            category=CATEGORY,
            description=(
                "Steers FLUX with the latent of the image being restored and its local prompt. Connect model and "
                "positive (and negative) to the sampler. The prompt in positive stays the global one that FLUX itself "
                "reads. Can be chained, and used with ordinary ControlNets, LoRAs and tiled sampling."
            ),
            search_aliases=["dreamsr", "controlnet", "mm-controlnet", "patch prompt", "tile"],
            inputs=[
                io.Model.Input("model", tooltip="A FLUX.1 model (Load Diffusion Model)."),
                MMControlNetSocket.Input("mm_controlnet", tooltip="From Load or Initialise MM-ControlNet."),
                io.Conditioning.Input("positive", tooltip="The global prompt, with FluxGuidance if any."),
                io.Latent.Input(
                    "latent",
                    tooltip=(
                        "What the network looks at, at the size that is sampled: the enlarged low-quality image "
                        "through the VAE, or in the texture stage the degradation-free latent. Not noisy."
                    ),
                ),
                io.Conditioning.Input(
                    "local_positive",
                    optional=True,
                    tooltip=(
                        "The prompt the control network reads. Unconnected: the global prompt in positive. Tiled "
                        "sampling with patch prompts replaces it tile by tile."
                    ),
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip=(
                        "Connect to control the negative branch too, with its own prompt as the local one. A "
                        "negative prompt that goes to the sampler directly is not controlled. Only matters at cfg "
                        "above 1."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How strongly both streams are steered. 1: as trained. 0: plain FLUX.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    advanced=True,
                    tooltip="Share of the whole sampling, from pure noise on, after which the control sets in.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    advanced=True,
                    tooltip="Share of the whole sampling, from pure noise on, after which the control ends.",
                ),
                io.Boolean.Input(
                    "text_branch",
                    default=True,
                    advanced=True,
                    tooltip=(
                        "Steer FLUX's text stream with the local prompt as well as its image stream. Off: the image "
                        "stream alone. Whether it adds to the text stream (our choice) or replaces it (eq. 2 as "
                        "printed), the file says."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The MODEL that runs the control network at every step."),
                io.Conditioning.Output(
                    display_name="positive", tooltip="positive with the latent and the local prompt in it."
                ),
                io.Conditioning.Output(
                    display_name="negative", tooltip="negative with the same latent in it; empty when unconnected."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, start_percent: float = 0.0, end_percent: float = 1.0):
        try:
            ApplyOptions(start=start_percent, end=end_percent)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model,
        mm_controlnet,
        positive,
        latent,
        strength: float,
        start_percent: float,
        end_percent: float,
        text_branch: bool,
        local_positive=None,
        negative=None,
    ) -> io.NodeOutput:
        options = ApplyOptions(strength, start_percent, end_percent, text_branch)
        return io.NodeOutput(
            *apply_mm_control(model, mm_controlnet, positive, negative, latent, local_positive, options)
        )


class InitialiseMMControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_InitialiseMMControlNet",
            display_name="Initialise MM-ControlNet",
            category=CATEGORY,
            description=(
                "Makes an untrained MM-ControlNet from a FLUX.1 model: two-stream blocks copied, outputs zero. With it "
                "FLUX gives exactly what it gives without. The start of a training, and a check of a workflow."
            ),
            search_aliases=["dreamsr", "controlnet", "mm-controlnet", "train", "create controlnet", "convert"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The FLUX.1 model to copy from, with its LoRAs. bf16, fp16, fp32 or fp8, not GGUF."
                ),
                io.Int.Input(
                    "layers",
                    default=9,
                    min=1,
                    max=19,
                    tooltip="Number of control blocks. The paper uses 9, half of FLUX.1's 19 two-stream blocks.",
                ),
                io.String.Input(
                    "dit_blocks",
                    default="",
                    advanced=True,
                    tooltip=(
                        "Two-stream blocks of FLUX that are copied and acted on: numbers from 0 separated by commas, "
                        "one per layer. Empty: spread evenly, as the paper says; which ones that is (0, 2, ... 16 for "
                        "9 of 19) is our choice."
                    ),
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="as the model",
                    advanced=True,
                    tooltip="Precision of the new weights. as the model: the model's own, bf16 where that is 8-bit.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    advanced=True,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Seed of the layers FLUX has no counterpart of: the text branch before its zero output.",
                ),
            ],
            outputs=[
                MMControlNetSocket.Output(
                    display_name="mm_controlnet", tooltip="For Apply MM-ControlNet or Save MM-ControlNet."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, layers: int = 9, dit_blocks: str = ""):
        try:
            parse_blocks(dit_blocks, layers)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, layers: int, dit_blocks: str, dtype: str, seed: int) -> io.NodeOutput:
        return io.NodeOutput(initialise_mm_control(model, layers, dit_blocks, DTYPES[dtype], seed))


class SaveMMControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_SaveMMControlNet",
            display_name="Save MM-ControlNet",
            category=CATEGORY,
            description=(
                "Writes an MM-ControlNet as .safetensors into ComfyUI's output folder, with its metadata and the "
                "workflow. Move it to models/controlnet to load it again."
            ),
            search_aliases=["dreamsr", "controlnet", "mm-controlnet", "save controlnet", "export"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                MMControlNetSocket.Input("mm_controlnet", tooltip="From Load or Initialise MM-ControlNet."),
                io.String.Input(
                    "filename_prefix",
                    default="controlnet/mm_controlnet",
                    tooltip="Folder and name under ComfyUI's output folder; a number is added.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, mm_controlnet, filename_prefix: str) -> io.NodeOutput:
        workflow = {"prompt": cls.hidden.prompt, **(cls.hidden.extra_pnginfo or {})}
        path = save_mm_control(mm_controlnet, filename_prefix, workflow)
        return io.NodeOutput(ui={"text": [str(path)]})


NODES = [LoadMMControlNet, ApplyMMControlNet, InitialiseMMControlNet, SaveMMControlNet]
