"""Prompts of single tiles: written by a vision-language model, and edited as text (arXiv 2605.15682)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy_api.latest import io

from ..host.images import checked_image
from ..host.progress import NodeBar, begin, following, show_on_node
from ..host.vlm import VLM, poll, vlm_of
from ..models.tiles.layout import TileLayout
from ..services.vlm.memory import AnswerMemory, KeyedQuestion
from ..services.vlm.patch_prompts import (
    PatchCaptioning,
    TileCaptions,
    TilePlace,
    listed,
    read_asked_again,
    read_blocks,
    read_prompts,
    tile_places,
)
from ..services.vlm.protocol import AnswerError, VisionLanguageModel
from .inputs import error_of, length_input, only, seed_input, vlm_input
from .sockets import TileCaptionsSocket, TileGridSocket
from .tile_editor import editor_ui
from .tiles import CATEGORY

log = logging.getLogger(__name__)

NAME = "Patch-Prompt Captioner"
EDIT_NAME = "Edit Patch Prompts"
STOP = "stop when the others are done"
FALL_BACK = "use the global prompt"
MISSING = object()
"""What stands for an input that is not connected, where a connected one is None."""


def override_input(name: str, what: str) -> io.String.Input:
    return io.String.Input(
        name,
        default="",
        multiline=True,
        optional=True,
        advanced=True,
        tooltip=f"What the model is told to do for {what}, instead of the pack's instruction (shown on the help page). "
        "The word max_length in braces becomes the limit. Empty: the pack's.",
    )


def prompt_outputs(global_prompt: str) -> list[io.Output]:
    return [
        io.String.Output(display_name="global_prompt", tooltip=global_prompt),
        io.String.Output(
            display_name="patch_prompts",
            is_output_list=True,
            tooltip="A list with one prompt for each tile, row by row, for Encode Patch Prompts.",
        ),
    ]


class PatchPromptCaptioner(io.ComfyNode):
    memory: ClassVar[AnswerMemory] = AnswerMemory()
    """Here because it has to outlive what it spares: a run that failed, a vlm that got a longer timeout since."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_PatchPromptCaptioner",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "A vision-language model writes one prompt for the whole picture and one for each tile of it (DreamSR, "
                "arXiv 2605.15682). Prompts are remembered while ComfyUI runs: queued again, only tiles whose pixels "
                "have changed are asked for. The pictures are shrunk and sent as JPEG to the connected endpoint; with "
                "a local model or a CLIP nothing leaves this machine."
            ),
            search_aliases=[
                "dreamsr",
                "patch prompts",
                "tile prompts",
                "caption tiles",
                "regional caption",
                "llava",
                "vlm",
                "interrogate",
            ],
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The low-quality image, one, enlarged to the size of the result: the one that Tile Grid "
                    "was given. Transparent parts are shown as white.",
                ),
                TileGridSocket.Input("tile_grid", tooltip="From Tile Grid."),
                vlm_input(
                    "Chat Endpoint, Load Local VLM, or the CLIP of a text encoder that can see and write (Qwen-VL, "
                    "Gemma): the ones that work in Generate Text."
                ),
                io.Int.Input(
                    "in_flight",
                    default=8,
                    min=1,
                    max=64,
                    tooltip="Tiles asked for at a time: requests on their way to a Chat Endpoint, or a batch of Load "
                    "Local VLM, which is halved where memory is short. A CLIP takes one at a time.",
                ),
                seed_input(),
                io.Combo.Input(
                    "on_failure",
                    options=[STOP, FALL_BACK],
                    default=STOP,
                    tooltip="When tiles get no usable answer after all retries: name them and stop, once all others "
                    "are asked for and remembered; queued again, only the failed ones are asked for. Or give them the "
                    "global prompt, and name them in the log. Without a global prompt it always stops.",
                ),
                length_input(),
                io.String.Input(
                    "global_prompt",
                    optional=True,
                    force_input=True,
                    tooltip="Your description of the whole picture; without one, or when it is empty, the model "
                    "writes it. With tell_global_prompt tiles are asked for again when you change it.",
                ),
                override_input("global_instruction", "the global prompt"),
                override_input("patch_instruction", "each tile"),
                io.Boolean.Input(
                    "tell_global_prompt",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Tell the model what the whole picture shows when it describes a tile. It understands more "
                    "and names more that the tile does not show, which is then painted there: the over-generation "
                    "that patch prompts are to prevent. Off: it sees the tile alone.",
                ),
                io.String.Input(
                    "ask_again",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Tiles to ask for anew although nothing has changed: a tile's number and how often, such "
                    "as 3:1, 13:2; 0 is the whole picture. 'Re-caption' in Edit Patch Prompts writes it. Each time "
                    "adds 1 to the tile's seed.",
                ),
            ],
            outputs=[
                *prompt_outputs("What the whole picture shows, on one line."),
                io.String.Output(
                    display_name="text",
                    tooltip="All prompts as one text, a numbered block for each tile: to read (Preview as Text), or to "
                    "edit in Edit Patch Prompts.",
                ),
                TileCaptionsSocket.Output(
                    display_name="captions",
                    tooltip="For Edit Patch Prompts: all prompts, and which tiles got none of their own.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, ask_again: str | None = None) -> bool | str:
        return error_of(partial(read_asked_again, ask_again or "")) or True

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        tile_grid: TileLayout,
        vlm: VLM,
        in_flight: int,
        seed: int,
        on_failure: str,
        max_length: int,
        global_prompt: str | None = None,
        global_instruction: str = "",
        patch_instruction: str = "",
        tell_global_prompt: bool = False,
        ask_again: str = "",
    ) -> io.NodeOutput:
        """Raises ValueError for several images, without a global prompt, for an ask_again that cannot be read, and as
        on_failure says for tiles that failed; SetupError for a missing key or library."""
        image = checked_image(image, f"{NAME}: ")
        whole = only_image(image)
        tiles = [tile[0] for tile in tile_grid.tiles(image, NAME)]
        rows, columns = len(tile_grid.grid.rows), len(tile_grid.grid.columns)
        instructions = (global_instruction, patch_instruction, tell_global_prompt)
        asking = PatchCaptioning(max_length, seed, *instructions, read_asked_again(ask_again))
        captioner = Captioner(vlm_of(vlm), cls.memory, in_flight, len(tiles))

        given = (global_prompt or "").strip()
        told = given or captioner.whole(asking.whole_question(whole))
        questions = asking.tile_questions(tiles, rows, columns, told, not given)
        found = captioner.tiles(questions, tile_places(rows, columns))
        failed = {place: value for place, value in found.items() if isinstance(value, AnswerError)}
        if failed and on_failure == STOP:
            raise ValueError(
                f"{NAME}: {failures(failed, len(found))}\nThe others are remembered: queue again, and only these are "
                f"asked for. Or set on_failure to '{FALL_BACK}'."
            )
        if failed:
            log.warning("RealISR: %s: %s\nThey get the global prompt.", NAME, failures(failed, len(found)))
        prompts = [told if place in failed else str(prompt) for place, prompt in found.items()]
        reasons = {place.number: str(error) for place, error in failed.items()}
        captions = TileCaptions(told, prompts, rows, columns, reasons)
        return io.NodeOutput(told, prompts, captions.text, captions)


class Captioner:
    """Asks one model, and shows how far it is: a step of the bar for each prompt."""

    def __init__(self, vlm: VisionLanguageModel, memory: AnswerMemory, in_flight: int, tiles: int):
        self.vlm = vlm
        self.memory = memory
        self.in_flight = in_flight
        self.steps = tiles + 1

    def whole(self, question: KeyedQuestion) -> str:
        """The global prompt. Raises ValueError when there is none: no tile can be asked for without."""
        show_on_node("The whole picture")
        begin()
        (answer,) = self.memory.answers(self.vlm, [question], poll)
        if isinstance(answer.value, AnswerError):
            raise ValueError(f"{NAME}: no global prompt. {answer.value}")
        return str(answer.value)

    def tiles(self, questions: Sequence[KeyedQuestion], places: Sequence[TilePlace]) -> dict[TilePlace, object]:
        """A prompt or an AnswerError for each tile, row by row."""
        found: dict[int, object] = {}
        # Not before the global prompt: models in this process have bars of their own for a single question.
        bar = comfy.utils.ProgressBar(self.steps)
        bar.update_absolute(1)
        for answer in self.memory.answers(self.vlm, questions, poll, self.in_flight):
            poll()
            found[answer.index] = answer.value
            bar.update_absolute(1 + len(found))
            show_on_node(f"{len(found)} of {len(questions)} tiles")
        return {place: found[index] for index, place in enumerate(places)}


def failures(failed: Mapping[TilePlace, AnswerError], tiles: int) -> str:
    """Which tiles have no prompt and why; tiles with the same reason together."""
    by_reason: dict[str, list[TilePlace]] = {}
    for place, error in failed.items():
        by_reason.setdefault(str(error), []).append(place)
    lines = [f"{listed(places)}: {reason}" for reason, places in by_reason.items()]
    return "\n".join([f"{len(failed)} of {tiles} tiles got no prompt.", *lines])


def only_image(image: torch.Tensor) -> torch.Tensor:
    """The only image `[H, W, C]` of a batch. Raises ValueError for several."""
    if image.shape[0] != 1:
        raise ValueError(
            f"{NAME}: image is a batch of {image.shape[0]} images, and the list of prompts is for the tiles of one. "
            "Choose one with Get Image from Batch, and restore the others in runs of their own."
        )
    return image[0]


class EditPatchPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_EditPatchPrompts",
            display_name=EDIT_NAME,
            category=CATEGORY,
            description=(
                "The prompts of the tiles on the picture itself: click a tile and write. With captions connected every "
                "tile has the caption that Patch-Prompt Captioner wrote until you edit it, and what you wrote stays "
                "when it captions again. Without, the text is all there is."
            ),
            search_aliases=["dreamsr", "patch prompts", "tile prompts", "regional prompts", "text to list", "editor"],
            # So that it can be run alone: captions are read and edited before anything is sampled.
            is_output_node=True,
            inputs=[
                TileGridSocket.Input(
                    "tile_grid", tooltip="From Tile Grid: the text has a block for each of its tiles."
                ),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="What you wrote, as one text. Each block is a line such as '=== tile 1 ===' and the prompt "
                    "below it; '=== whole picture ===' is the global prompt. A block without text is an empty prompt. "
                    "A tile without a block has its caption; without captions every tile needs one.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture that the tiles are drawn over: the one that Tile Grid was given.",
                ),
                TileCaptionsSocket.Input(
                    "captions",
                    optional=True,
                    tooltip="From Patch-Prompt Captioner: the prompts of all tiles that you have not edited.",
                ),
            ],
            outputs=prompt_outputs("The prompt of the whole picture."),
        )

    @classmethod
    def validate_inputs(cls, text: str | None = None, captions: object = MISSING) -> bool | str:
        # What is linked is None here and is checked when the node runs.
        try:
            if text is not None:
                checked(text, captions is not MISSING)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        tile_grid: TileLayout,
        text: str,
        image: torch.Tensor | None = None,
        captions: TileCaptions | None = None,
    ) -> io.NodeOutput:
        """Raises ValueError for a text or captions that do not fit the grid, and for an image that is none."""
        if image is not None:
            image = checked_image(image, f"{EDIT_NAME}: ")
        rows, columns = len(tile_grid.grid.rows), len(tile_grid.grid.columns)
        try:
            prompts = read_prompts(checked(text, captions is not None), rows, columns, captions)
        except ValueError as error:
            raise ValueError(f"{EDIT_NAME}: {error}") from None
        return io.NodeOutput(*prompts, ui=editor_ui(tile_grid, text, image, captions))


def checked(text: str, captions: bool = False) -> str:
    """The text. Raises ValueError for one that fits no grid, and for an empty one unless there are captions."""
    if not read_blocks(text) and not captions:
        raise ValueError(f"text is empty. Connect the captions of {NAME}, or paste its text and edit it.")
    return text


ENCODE_NAME = "Encode Patch Prompts"


class EncodePatchPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_EncodePatchPrompts",
            display_name=ENCODE_NAME,
            category=CATEGORY,
            description=(
                "Encodes a list of texts, one for each tile, to a list of conditionings. A text that several tiles "
                "share is encoded once."
            ),
            search_aliases=["patch prompts", "tile prompts", "clip text encode", "prompt list", "dreamsr"],
            is_input_list=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoders of the model (DualCLIPLoader, type flux, for FLUX)."),
                io.String.Input(
                    "prompts",
                    force_input=True,
                    tooltip="One text for each tile, row by row: Patch-Prompt Captioner, or any list of texts.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="patch_prompts",
                    is_output_list=True,
                    tooltip="One conditioning for each text, for Tiled MultiDiffusion or Diptych Tiles.",
                )
            ],
        )

    @classmethod
    def execute(cls, clip: list[comfy.sd.CLIP], prompts: list[str]) -> io.NodeOutput:
        """Both come as lists. Raises ValueError for several encoders, and for a checkpoint without one."""
        encoder, encoded = only(ENCODE_NAME, "clip", clip), {}
        if encoder is None:
            raise ValueError(f"{ENCODE_NAME}: the checkpoint holds no text encoder. Load it with a CLIP loader.")
        bar = NodeBar(len(prompts))
        for text in prompts:
            comfy.model_management.throw_exception_if_processing_interrupted()
            with bar.stage():
                if text not in encoded:
                    with following(encoder.cond_stage_model):
                        encoded[text] = encoder.encode_from_tokens_scheduled(encoder.tokenize(text))
        return io.NodeOutput([encoded[text] for text in prompts])


NODES = [PatchPromptCaptioner, EditPatchPrompts, EncodePatchPrompts]
