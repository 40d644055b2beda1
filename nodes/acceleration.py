"""DreamSR's first stage as a node: degradation removal in one forward (arXiv 2605.15682)."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..host.dreamsr.acceleration import remove_degradation
from ..host.dreamsr.forward_lora import with_forward_lora
from ..host.loading import load_state_dict_file, model_files
from ..models.dreamsr.schedule import REMOVAL_TIME, TEXTURE_START, TEXTURE_STEPS, texture_sigmas

CATEGORY = "RealISR/DreamSR"


class AccelerationLoRAStep(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_AccelerationLoRAStep",
            display_name="Acceleration-LoRA Step",
            category=CATEGORY,
            description=(
                "DreamSR's degradation removal: one forward of the model on the LQ latent itself, with the "
                "acceleration LoRA on for that forward only. Gives a clean latent and the SIGMAS of the texture "
                "stage, both for SamplerCustomAdvanced. Any clean latent (VOSR, an upscaler and VAE Encode) can "
                "stand in for this step."
            ),
            search_aliases=["dreamsr", "degradation removal", "restoration acceleration", "ra-lora", "one step"],
            inputs=[
                io.Guider.Input(
                    "guider",
                    tooltip="Model, ControlNets, prompts and tiling of the forward (CFGGuider, BasicGuider, or tiled).",
                ),
                io.Latent.Input("latent", tooltip="The enlarged LQ image, encoded by the model's VAE (z_lq)."),
                io.Combo.Input(
                    "lora_name",
                    options=model_files("loras"),
                    tooltip="The restoration acceleration LoRA, from the loras folder. Off again after the forward.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Strength of the LoRA. 1 is what it was trained at.",
                ),
                io.Float.Input(
                    "texture_start",
                    default=TEXTURE_START,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip=(
                        "Noise the texture stage starts from (t). Higher invents more detail, lower stays closer to "
                        "the clean latent."
                    ),
                ),
                io.Int.Input(
                    "texture_steps", default=TEXTURE_STEPS, min=1, max=200, tooltip="Steps of the texture stage."
                ),
                io.Float.Input(
                    "shift",
                    default=1.0,
                    min=0.1,
                    max=20.0,
                    step=0.05,
                    round=0.001,
                    advanced=True,
                    tooltip="1: uniform steps, as DreamSR. Above: more steps at high noise (FLUX: 1.65 to 3.16).",
                ),
                io.Float.Input(
                    "removal_time",
                    default=REMOVAL_TIME,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    advanced=True,
                    tooltip="Time the networks are told in the forward (t_s), and how far it goes: z - t_s v(z, t_s).",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The clean latent z_dr: starts the texture stage."),
                io.Sigmas.Output(display_name="sigmas", tooltip="Schedule of the texture stage: texture_start to 0."),
            ],
        )

    @classmethod
    def execute(
        cls, guider, latent, lora_name, strength, texture_start, texture_steps, shift, removal_time
    ) -> io.NodeOutput:
        sigmas = texture_sigmas(texture_steps, texture_start, shift)
        lora, _ = load_state_dict_file(folder_paths.get_full_path_or_raise("loras", lora_name))
        model = with_forward_lora(guider.model_patcher, lora, strength, lora_name)
        samples = remove_degradation(guider, model, latent["samples"], removal_time)
        return io.NodeOutput({**latent, "samples": samples}, sigmas)


NODES = [AccelerationLoRAStep]
