"""Vision-language models on a wire: a chat endpoint, a local transformers folder, or a host CLIP that writes."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy_api.latest import io

from ..host.vlm import generate_text, managed, weight_dtypes, within_memory
from ..host.vlm_folders import find_vlm, vlm_choices
from ..services.addresses import check_key_variable, normalize_base_url
from ..services.answers import excerpt
from ..services.chat import ChatEndpoint, Detail, check_model
from ..services.pictures import fit
from ..services.questions import Answer, AnswerError, Poll, Question, SetupError, VisionLanguageModel, in_batches
from ..services.vision_language import LocalVLM, load_local_vlm

CATEGORY = "RealISR/Agent"
VLM = io.Custom("REALISR_VLM")
MAX_SEED = 2**32 - 1
"""Endpoints and samplers take seeds of different widths; all take this one."""

HOST_TEMPERATURE = 0.2
HOST_MAX_TOKENS = 768
HOST_IMAGE_SIZE = 1024


def vlm_input(tooltip: str) -> io.MultiType.Input:
    """The socket that takes any of the three."""
    return io.MultiType.Input("vlm", [VLM, io.Clip], tooltip=tooltip)


def vlm_of(value: VisionLanguageModel | comfy.sd.CLIP) -> VisionLanguageModel:
    """What came over the wire, as something that answers questions."""
    return HostVLM(value) if isinstance(value, comfy.sd.CLIP) else value


def poll() -> None:
    """Raises when the artist has pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def one_image(node: str, name: str, image: torch.Tensor) -> torch.Tensor:
    """The only image `[H, W, C]` of a batch. Raises ValueError for several: each needs a prompt of its own."""
    if image.shape[0] != 1:
        raise ValueError(
            f"{node}: {name} is a batch of {image.shape[0]} images, and each image needs a prompt of its own. Put "
            "Rebatch Images (batch size 1) before it: the node then runs once per image and gives a list of prompts. "
            "Or choose one image with Get Image from Batch."
        )
    return image[0]


def whole(text: str, complete: bool, max_tokens: int) -> str | AnswerError:
    """The text of a model in this process, or an error for one that was cut off: half a prompt is none."""
    if not complete:
        return AnswerError(f"The model did not come to an end within {max_tokens} tokens: {excerpt(text)}")
    return text


@dataclass(frozen=True)
class HostVLM:
    """A text encoder of the host that can write (Qwen-VL, Gemma and others), as Generate Text uses it."""

    clip: comfy.sd.CLIP

    @property
    def identity(self) -> Hashable:
        """The network while it lives, and what LoRAs have made of it."""
        return weakref.ref(self.clip.cond_stage_model), self.clip.patcher.patches_uuid

    def answers(self, questions: Sequence[Question], poll: Poll, in_flight: int = 1) -> Iterator[Answer]:
        """See VisionLanguageModel; one question at a time."""
        return in_batches(questions, 1, lambda batch: [self._answer(question) for question in batch], poll)

    def _answer(self, question: Question) -> str | AnswerError:
        images = [fit(picture.image, HOST_IMAGE_SIZE) for picture in question.pictures]
        text, complete = generate_text(
            self.clip, question.as_one_text, images, HOST_MAX_TOKENS, HOST_TEMPERATURE, question.seed or 0
        )
        return whole(text, complete, HOST_MAX_TOKENS)


@dataclass(frozen=True)
class ManagedVLM:
    """A transformers model on the host's device management. patcher: of the model inside `local`."""

    local: LocalVLM
    patcher: Any

    @property
    def identity(self) -> Hashable:
        """The network while it lives, and how it is asked."""
        return weakref.ref(self.local.network), self.local.temperature, self.local.image_size

    def answers(self, questions: Sequence[Question], poll: Poll, in_flight: int = 1) -> Iterator[Answer]:
        """See VisionLanguageModel; `in_flight` questions are answered as one batch, or fewer where memory is short."""

        def answers(batch: Sequence[Question]) -> list[str | AnswerError]:
            comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
            # The bar of several questions counts questions, and is their caller's.
            bar = comfy.utils.ProgressBar(self.local.max_tokens) if len(questions) == 1 else None

            def advance() -> None:
                poll()
                if bar is not None:
                    bar.update(1)

            written = within_memory(lambda part: self.local.answers(part, self.patcher.load_device, advance), batch)
            return [whole(text, complete, self.local.max_tokens) for text, complete in written]

        return in_batches(questions, in_flight, answers, poll)


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
                    "only to its own service, to this machine, or to the address in its *_BASE_URL variable. Servers "
                    "without keys need none.",
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
                VLM.Output(
                    display_name="vlm", tooltip="For Agent Prompt Refiner, Caption for Restoration and their relatives."
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, base_url: str | None = None, model: str | None = None, key_variable: str | None = None
    ) -> bool | str:
        # A linked input is None here and is checked when the node runs.
        try:
            if base_url is not None:
                normalize_base_url(base_url)
            if model is not None:
                check_model(model)
            if key_variable is not None:
                check_key_variable(key_variable)
        except SetupError as error:
            return str(error)
        return True

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
                    options=list(weight_dtypes()),
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
                VLM.Output(
                    display_name="vlm", tooltip="For Agent Prompt Refiner, Caption for Restoration and their relatives."
                )
            ],
        )

    @classmethod
    def execute(
        cls, model_name: str, weight_dtype: str, temperature: float, max_tokens: int, image_size: int
    ) -> io.NodeOutput:
        dtype = weight_dtypes()[weight_dtype]
        local = load_local_vlm(find_vlm(model_name), dtype, temperature, max_tokens, image_size)
        return io.NodeOutput(ManagedVLM(local, managed(local.network)))


NODES = [ChatEndpointNode, LoadLocalVLM]
