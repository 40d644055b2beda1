"""The prompt a restoration starts with."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..services.prompting import Style, caption_question
from ..services.questions import AnswerError, ask
from .agent import instruction_input, length_input, seed_input
from .vlm import CATEGORY, one_image, poll, vlm_input, vlm_of

NAME = "Caption for Restoration"
STYLES: dict[str, Style] = {"sentences (VICR)": "sentences", "tags (VICR-Faithful)": "tags"}


class CaptionForRestoration(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_CaptionForRestoration",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Describes a low-quality image as the prompt of a text-guided restorer: the scene in sentences (VICR), "
                "or tags that name what is visible and how it is degraded, for results closer to the input "
                "(VICR-Faithful, arXiv 2606.00704)."
            ),
            search_aliases=["vicr", "caption", "describe image", "interrogate", "prompt", "llava", "tagger", "vlm"],
            inputs=[
                io.Image.Input("image", tooltip="The low-quality input, one image. Transparent parts become white."),
                vlm_input(
                    "Chat Endpoint, Load Local VLM, or the CLIP of a text encoder that can see and write (Qwen-VL, "
                    "Gemma): the ones that work in Generate Text."
                ),
                io.Combo.Input(
                    "style",
                    options=list(STYLES),
                    default="sentences (VICR)",
                    tooltip="sentences: a description of the sharp scene; more detail is generated. tags: visible "
                    "things and their degradations; weaker guidance, higher fidelity.",
                ),
                seed_input(),
                length_input(),
                instruction_input(),
            ],
            outputs=[io.String.Output(display_name="prompt", tooltip="The prompt, on one line.")],
        )

    @classmethod
    def execute(
        cls, image: torch.Tensor, vlm, style: str, seed: int, max_length: int, instruction: str = ""
    ) -> io.NodeOutput:
        question = caption_question(one_image(NAME, "image", image), STYLES[style], max_length, instruction, seed)
        try:
            return io.NodeOutput(ask(vlm_of(vlm), question, poll))
        except AnswerError as error:
            raise ValueError(f"{NAME}: {error}") from None


NODES = [CaptionForRestoration]
