"""The prompt of a restoration: a caption to start with, and an agent that revises it (VICR, arXiv 2606.00704)."""

from __future__ import annotations

import logging

import torch
from comfy_api.latest import io

from ..host.vlm import VLM, poll, vlm_of
from ..services.vlm.protocol import AnswerError, ask
from ..services.vlm.questions import RefinedPrompt, Style, caption_question, refine_question
from .inputs import instruction_input, length_input, one_image, seed_input, vlm_input

log = logging.getLogger(__name__)

CATEGORY = "RealISR/Agent"
NAME = "Agent Prompt Refiner"
CAPTION_NAME = "Caption for Restoration"
STYLES: dict[str, Style] = {"sentences (VICR)": "sentences", "tags (VICR-Faithful)": "tags"}
STOP = "stop"
CONTINUE = "continue with the previous prompt"


def refiner_options(seed_id: str = "seed") -> list[io.Input]:
    """The refiner's widgets, for a node that runs refiners of its own. They are inputs of the same names there."""
    return [
        seed_input(seed_id),
        length_input(),
        io.Combo.Input(
            "on_failure",
            options=[STOP, CONTINUE],
            default=STOP,
            tooltip="When the model gives no usable answer after all retries: stop the workflow with the reason, or go "
            "on with the previous prompt and say so in the other outputs. A missing key or library always stops.",
        ),
        instruction_input(),
    ]


class AgentPromptRefiner(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_AgentPromptRefiner",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Shows a vision-language model the low-quality image, the previous result and its prompt, and gets the "
                "complete prompt for the next round: the scene is kept, one or two cues about artifacts or ambiguous "
                "regions are added, nothing is invented (VICR, arXiv 2606.00704). The instruction is the pack's own: "
                "the paper gives rules, not words. The pictures are shrunk and sent as "
                "JPEG to the connected endpoint; with a local model or a CLIP nothing leaves this machine."
            ),
            search_aliases=["vicr", "prompt", "refine", "agent", "llm", "vlm", "gpt", "rewrite prompt", "critic"],
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The low-quality input, one image: the only evidence of what the picture shows. "
                    "Transparent parts are shown as white.",
                ),
                io.String.Input(
                    "previous_prompt",
                    default="",
                    multiline=True,
                    tooltip="The prompt of the previous round; in the first one a caption, for example from Caption "
                    "for Restoration.",
                ),
                vlm_input(
                    "Chat Endpoint, Load Local VLM, or the CLIP of a text encoder that can see and write (Qwen-VL, "
                    "Gemma): the ones that work in Generate Text."
                ),
                io.Image.Input(
                    "previous_result",
                    optional=True,
                    tooltip="The raw result of the previous round (not the best so far), one image of any size. Leave "
                    "it open in a round that has no result yet.",
                ),
                *refiner_options(),
                io.String.Input(
                    "initial_prompt",
                    optional=True,
                    force_input=True,
                    tooltip="The prompt of the first round, usually a caption of the low-quality image: the anchor "
                    "that the paper shows the agent in every round. Leave it open where there is none.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt", tooltip="The complete revised prompt, on one line."),
                io.String.Output(display_name="changes", tooltip="What the model says it changed."),
                io.String.Output(display_name="reason", tooltip="Why, in the model's words."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        previous_prompt: str,
        vlm: VLM,
        seed: int,
        max_length: int,
        on_failure: str,
        previous_result: torch.Tensor | None = None,
        instruction: str = "",
        initial_prompt: str = "",
    ) -> io.NodeOutput:
        """One revision. Raises ValueError for inputs that cannot be used, and without a usable answer as on_failure
        says; SetupError for a missing key or library."""
        check_previous(previous_prompt, max_length)
        question = refine_question(
            one_image(NAME, "image", image),
            previous_prompt,
            None if previous_result is None else one_image(NAME, "previous_result", previous_result),
            max_length,
            instruction,
            seed,
            initial_prompt,
        )
        try:
            refined = ask(vlm_of(vlm), question, poll)
        except AnswerError as error:
            if on_failure == STOP:
                raise ValueError(f"{NAME}: {error}") from None
            log.warning("RealISR: %s: %s Going on with the previous prompt.", NAME, error)
            return io.NodeOutput(previous_prompt, "Nothing: the model gave no usable answer.", str(error))
        assert isinstance(refined, RefinedPrompt)
        return io.NodeOutput(refined.prompt, refined.changes, refined.reason)


def check_previous(prompt: str, max_length: int) -> None:
    """Raises ValueError for a prompt that cannot be revised."""
    if not prompt.strip():
        raise ValueError(
            f"{NAME}: previous_prompt is empty. The agent revises a prompt: connect Caption for Restoration, or write "
            "what the picture shows."
        )
    if len(prompt) > max_length:
        raise ValueError(
            f"{NAME}: previous_prompt has {len(prompt)} characters and max_length allows {max_length}. Raise "
            "max_length or shorten the prompt."
        )


class CaptionForRestoration(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_CaptionForRestoration",
            display_name=CAPTION_NAME,
            category=CATEGORY,
            description=(
                "Describes a low-quality image as the prompt of a text-guided restorer (VICR, arXiv 2606.00704): the "
                "scene in sentences, or content tags that name what is visible, for VICR-Faithful, a model of its own "
                "that was trained on tags."
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
                    tooltip="sentences: a description of the sharp scene, for VICR. tags: names of visible things, "
                    "never of their damage, for VICR-Faithful, a model trained on tags: weaker guidance, closer to the "
                    "input. A model trained on sentences does not become faithful by tags.",
                ),
                seed_input(),
                length_input(),
                instruction_input(),
            ],
            outputs=[io.String.Output(display_name="prompt", tooltip="The prompt, on one line.")],
        )

    @classmethod
    def execute(
        cls, image: torch.Tensor, vlm: VLM, style: str, seed: int, max_length: int, instruction: str = ""
    ) -> io.NodeOutput:
        """Raises ValueError for several images and without a usable answer; SetupError for a missing key or library."""
        question = caption_question(
            one_image(CAPTION_NAME, "image", image), STYLES[style], max_length, instruction, seed
        )
        try:
            return io.NodeOutput(ask(vlm_of(vlm), question, poll))
        except AnswerError as error:
            raise ValueError(f"{CAPTION_NAME}: {error}") from None


NODES = [AgentPromptRefiner, CaptionForRestoration]
