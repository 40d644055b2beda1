"""Loader of PURE's two parts: the autoregressive transformer and the VQ autoencoder."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.pure.files import VQ_AUTO, find_restorer, find_vqgan_for, restorer_choices, vq_choices
from ..host.pure.loader import AUTO, WEIGHT_CHOICES, load_ar_restorer
from .inputs import checked_choice, per_input
from .sockets import ARRestorerSocket

CATEGORY = "RealISR/PURE"


class LoadARRestorer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_LoadARRestorer",
            display_name="Load PURE Model",
            category=CATEGORY,
            description=(
                "Loads PURE as released: the nonwhy/PURE folder (config.json, the *.safetensors with their index, "
                "tokenizer.json) in models/LLM, and LlamaGen's vq_ds8_c2i.pt in models/vae or in that folder. "
                "7 B parameters: 14 GB in bf16, about 8 GB in fp8, and 7 GB more for each image while it is drawn. "
                "What does not fit on the GPU is offloaded."
            ),
            search_aliases=["pure", "autoregressive", "chameleon", "lumina-mgpt", "load llm", "vqgan", "llamagen"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=restorer_choices(),
                    tooltip="The folder of nonwhy/PURE in models/LLM.",
                ),
                io.Combo.Input(
                    "vq_name",
                    options=vq_choices(),
                    default=VQ_AUTO,
                    tooltip="vq_ds8_c2i.pt of FoundationVision/LlamaGen in models/vae. auto: that file, or one inside "
                    "the model's folder.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_CHOICES),
                    default=AUTO,
                    advanced=True,
                    tooltip=(
                        "Precision of the transformer's weights in memory. auto: bf16, as released, or fp32 where the "
                        "device has no bf16. fp8 halves the memory: the layers' matrices are stored with a scale each; "
                        "the fast variant also multiplies in fp8 on GPUs that can, a little less exactly."
                    ),
                ),
            ],
            outputs=[
                ARRestorerSocket.Output(display_name="model", tooltip="For AR Token Restorer."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None, vq_name: str | None = None) -> bool | str:
        return per_input(
            model_name=checked_choice(model_name, find_restorer),
            vq_name=True
            if model_name is None
            else checked_choice(vq_name, lambda name: find_vqgan_for(name, model_name)),
        )

    @classmethod
    def execute(cls, model_name: str, vq_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load_ar_restorer(model_name, vq_name, weight_dtype))


NODES = [LoadARRestorer]
