"""Vision-language models on a wire: a chat endpoint, a local transformers folder, or a host CLIP that writes."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.precision import foreign_dtypes
from ..host.vlm import ManagedVLM, managed
from ..host.vlm_folders import find_vlm, vlm_choices
from ..services.vlm.chat.addresses import check_key_variable, normalize_base_url
from ..services.vlm.chat.endpoint import ChatEndpoint, Detail, check_model
from ..services.vlm.protocol import SetupError
from ..services.vlm.transformers import load_local_vlm
from .inputs import checked_choice, per_input
from .sockets import VLMSocket

CATEGORY = "RealISR/VLM"


class ChatEndpointNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_ChatEndpoint",
            display_name="Chat Endpoint",
            category=CATEGORY,
            description=(
                "A vision-language model behind an OpenAI-compatible chat endpoint: OpenAI, vLLM, Ollama, LM Studio, "
                "llama.cpp and others. Nothing is sent by this node; the node that asks sends the pictures. The key is "
                "read from the environment when it is used and is never part of a workflow."
            ),
            search_aliases=["openai", "ollama", "vllm", "lm studio", "llama.cpp", "llm", "vlm", "gpt", "api", "agent"],
            inputs=[
                io.String.Input(
                    "base_url",
                    default="https://api.openai.com/v1",
                    tooltip="Address of the endpoint. Ollama: http://localhost:11434/v1, LM Studio: "
                    "http://localhost:1234/v1, llama.cpp: http://localhost:8080/v1, vLLM: http://localhost:8000/v1.",
                ),
                io.String.Input(
                    "model",
                    default="gpt-5.4",
                    tooltip="Name of a model that reads images, as the endpoint lists it: gpt-5.4, qwen3-vl:8b, ...",
                ),
                io.String.Input(
                    "key_variable",
                    default="OPENAI_API_KEY",
                    tooltip="Name of the environment variable that holds the key, never the key itself. A key goes "
                    "only to its own service, to the address in its *_BASE_URL variable, or, if it is the key of a "
                    "chat service or named in REALISR_KEY_VARIABLES, to this machine. May be empty for a server on "
                    "this machine.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.2,
                    min=-1.0,
                    max=2.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How freely the model words its answer; 0 is the most repeatable. -1: the endpoint's own.",
                ),
                io.Int.Input(
                    "max_tokens",
                    default=4096,
                    min=16,
                    max=131072,
                    advanced=True,
                    tooltip="Longest answer in tokens, the thinking of a reasoning model included.",
                ),
                io.Float.Input(
                    "timeout",
                    default=120.0,
                    min=1.0,
                    max=3600.0,
                    step=1.0,
                    advanced=True,
                    tooltip="Seconds to wait for one answer. Local servers load the model during the first one.",
                ),
                io.Int.Input(
                    "retries",
                    default=3,
                    min=0,
                    max=20,
                    advanced=True,
                    tooltip="Further attempts after a failure that may pass: busy server, time-out, unusable answer. "
                    "The wait doubles each time, or is what the server asks for.",
                ),
                io.Combo.Input(
                    "image_detail",
                    options=["auto", "low", "high"],
                    default="auto",
                    advanced=True,
                    tooltip="How closely the endpoint looks at a picture, where it has that choice (OpenAI).",
                ),
                io.Int.Input(
                    "image_size",
                    default=1024,
                    min=64,
                    max=8192,
                    step=8,
                    advanced=True,
                    tooltip="Pictures are shrunk to this longest side in pixels before they are sent, never enlarged.",
                ),
                io.Int.Input(
                    "jpeg_quality",
                    default=90,
                    min=1,
                    max=100,
                    advanced=True,
                    tooltip="Quality of the JPEG that is sent. Below 90 colours are stored at half resolution; low "
                    "values look like damage of the photo to the model.",
                ),
            ],
            outputs=[
                VLMSocket.Output(
                    display_name="vlm", tooltip="For Agent Prompt Refiner, Caption for Restoration and their relatives."
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, base_url: str | None = None, model: str | None = None, key_variable: str | None = None
    ) -> bool | str:
        # A linked input is None here and is checked when the node runs.
        return per_input(
            base_url=checked_choice(base_url, normalize_base_url),
            model=checked_choice(model, check_model),
            key_variable=checked_choice(key_variable, lambda name: check_key_variable(name, own_address(base_url))),
        )

    @classmethod
    def execute(
        cls,
        base_url: str,
        model: str,
        key_variable: str,
        temperature: float,
        max_tokens: int,
        timeout: float,
        retries: int,
        image_detail: Detail,
        image_size: int,
        jpeg_quality: int,
    ) -> io.NodeOutput:
        """Raises SetupError for settings that cannot work."""
        own_temperature = None if temperature < 0 else temperature
        return io.NodeOutput(
            ChatEndpoint(
                base_url,
                model.strip(),
                key_variable,
                own_temperature,
                max_tokens,
                timeout,
                retries,
                image_detail,
                image_size,
                jpeg_quality,
            )
        )


class LoadLocalVLM(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_LoadLocalVLM",
            display_name="Load Local VLM",
            category=CATEGORY,
            description=(
                "Loads a vision-language model from a transformers folder in models/LLM, such as LLaVA 1.5 7B "
                "(llava-hf/llava-1.5-7b-hf). Runs offline, on ComfyUI's device management. ComfyUI's own text encoders "
                "that can write need no loader here: wire their CLIP instead."
            ),
            search_aliases=["llava", "vlm", "llm", "transformers", "caption", "local", "offline", "agent"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=vlm_choices(),
                    tooltip="A folder in models/LLM with config.json, the processor's files and safetensors weights.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(foreign_dtypes()),
                    default="default",
                    advanced=True,
                    tooltip="Precision of the weights. default: bf16 or fp16 on a GPU, whichever it is good at, and "
                    "fp32 on the CPU.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.2,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How freely the model words its answer; 0 always takes the likeliest word.",
                ),
                io.Int.Input(
                    "max_tokens",
                    default=512,
                    min=16,
                    max=8192,
                    advanced=True,
                    tooltip="Longest answer in tokens.",
                ),
                io.Int.Input(
                    "image_size",
                    default=1024,
                    min=64,
                    max=8192,
                    step=8,
                    advanced=True,
                    tooltip="Pictures are shrunk to this longest side in pixels before the model's own preprocessing.",
                ),
            ],
            outputs=[
                VLMSocket.Output(
                    display_name="vlm", tooltip="For Agent Prompt Refiner, Caption for Restoration and their relatives."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None) -> bool | str:
        return checked_choice(model_name, find_vlm)

    @classmethod
    def execute(
        cls, model_name: str, weight_dtype: str, temperature: float, max_tokens: int, image_size: int
    ) -> io.NodeOutput:
        """Raises ValueError for a folder that cannot be loaded, SetupError when transformers is missing."""
        dtype = foreign_dtypes()[weight_dtype]
        local = load_local_vlm(find_vlm(model_name), dtype, temperature, max_tokens, image_size)
        return io.NodeOutput(ManagedVLM(local, managed(local.network)))


def own_address(base_url: str | None) -> str:
    """The address that a key would go to; a local one where it is not known yet, or is what is wrong."""
    try:
        return normalize_base_url(base_url or "localhost")
    except SetupError:
        return normalize_base_url("localhost")


NODES = [ChatEndpointNode, LoadLocalVLM]
