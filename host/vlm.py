"""Vision-language models on the host: its own text encoders that can write, and networks of transformers."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from comfy.text_encoders.llama import BaseGenerate
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..services.vlm.answers import excerpt
from ..services.vlm.pictures import fit
from ..services.vlm.protocol import Answer, AnswerError, Poll, Question, VisionLanguageModel, in_batches
from ..services.vlm.transformers import LocalVLM
from .memory import MostTogether, within_memory
from .progress import begin
from .types import Model

SAMPLING = {"top_k": 64, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05, "presence_penalty": 0.0}
GAP = 16
"""Pixels of white between pictures that are put side by side."""
SIDE_BY_SIDE = "\n\nThe pictures are shown side by side in one image, picture 1 on the left."


class Managed(nn.Module):
    """Holds a foreign network: the host's patcher notes things on the module it manages."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


def managed(network: nn.Module) -> Model:
    """A patcher through which the host loads and frees a network whose layers are torch's own.

    Such layers cannot be offloaded one by one: load it with force_full_load.
    """
    return comfy.model_patcher.ModelPatcher(
        Managed(network),
        load_device=comfy.model_management.text_encoder_device(),
        offload_device=comfy.model_management.text_encoder_offload_device(),
    )


def generate_text(
    clip: comfy.sd.CLIP, text: str, images: Sequence[Tensor], max_tokens: int, temperature: float, seed: int
) -> tuple[str, bool]:
    """What a text encoder of the host writes about images `[H, W, 3]` in 0..1, and whether it came to its end.

    temperature: 0 always takes the likeliest token. Raises ValueError for an encoder that cannot write or cannot see.
    """
    writer = next((module for module in clip.cond_stage_model.modules() if isinstance(module, BaseGenerate)), None)
    if writer is None:
        raise ValueError(
            f"The connected CLIP ({type(clip.cond_stage_model).__name__}) encodes text and cannot write. Connect a "
            "text encoder that works in Generate Text with an image (Qwen3-VL, Qwen3.5, Gemma), or a Chat Endpoint."
        )
    ids = clip.generate(
        see(clip, text, images),
        do_sample=temperature > 0,
        max_length=max_tokens,
        temperature=temperature,
        seed=seed,
        **SAMPLING,
    )
    complete = len(ids) < max_tokens or ids[-1] in writer.model.config.stop_tokens
    return clip.decode(ids), complete


def see(clip: comfy.sd.CLIP, text: str, images: Sequence[Tensor]) -> Any:
    """Tokens of the text and every image; side by side in one image for encoders that take only one.

    Raises ValueError for an encoder that takes none.
    """
    tokens = tokenize(clip, text, images)
    if images_in(tokens) == len(images):
        return tokens
    tokens = tokenize(clip, text + (SIDE_BY_SIDE if len(images) > 1 else ""), [side_by_side(images)])
    if images_in(tokens) != 1:
        raise ValueError(
            f"The connected CLIP ({type(clip.cond_stage_model).__name__}) writes and cannot see: its tokenizer takes "
            "no image. Connect one that works in Generate Text with an image (Qwen3-VL, Qwen3.5, Gemma 3 or 4 with "
            "vision), or a Chat Endpoint."
        )
    return tokens


def tokenize(clip: comfy.sd.CLIP, text: str, images: Sequence[Tensor]) -> Any:
    # Some tokenizers take a batch (`image`), some a list (`images`); each ignores the other.
    height, width = (max(image.shape[side] for image in images) for side in (0, 1))
    batch = torch.cat([resized(image, height, width) for image in images])
    return clip.tokenize(
        text, image=batch, images=[image[None] for image in images], skip_template=False, min_length=1, thinking=False
    )


def images_in(tokens: Any) -> int:
    """How many images a host tokenizer's result holds."""
    rows = next(iter(tokens.values())) if isinstance(tokens, dict) else tokens
    return sum(isinstance(token[0], dict) and token[0].get("type") == "image" for row in rows for token in row)


def side_by_side(images: Sequence[Tensor]) -> Tensor:
    """Images `[H, W, 3]` in a row, at the height of the tallest."""
    height = max(image.shape[0] for image in images)
    row: list[Tensor] = []
    for image in images:
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        row += [resized(image, height, width)[0], image.new_ones(height, GAP, 3)]
    return torch.cat(row[:-1], dim=1)


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """`[H, W, 3]` -> `[1, height, width, 3]`."""
    if image.shape[:2] == (height, width):
        return image[None]
    channels_first = image.movedim(-1, 0)[None]
    return interpolate(channels_first, (height, width), mode="bicubic", antialias=True).clamp(0, 1).movedim(1, -1)


HOST_TEMPERATURE = 0.2
HOST_MAX_TOKENS = 768
HOST_IMAGE_SIZE = 1024
"""Longest side in pixels of what a text encoder is shown."""

VLM: TypeAlias = VisionLanguageModel | comfy.sd.CLIP
"""What comes over a `vlm` wire."""


def vlm_of(value: VLM) -> VisionLanguageModel:
    """What came over the wire, as something that answers questions."""
    return HostVLM(value) if isinstance(value, comfy.sd.CLIP) else value


def poll() -> None:
    """Raises when the artist has pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


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
        if len(questions) == 1:
            begin()
        return in_batches(questions, 1, lambda batch: [self._answer(question) for question in batch], poll)

    def _answer(self, question: Question) -> str | AnswerError:
        images = [fit(picture.image, HOST_IMAGE_SIZE) for picture in question.pictures]
        text, complete = generate_text(
            self.clip, question.as_one_text, images, HOST_MAX_TOKENS, HOST_TEMPERATURE, question.seed or 0
        )
        return whole(text, complete, HOST_MAX_TOKENS)


@dataclass(frozen=True)
class ManagedVLM:
    """A transformers model on the host's device management."""

    local: LocalVLM
    patcher: Model
    """Of the network inside `local`."""

    @property
    def identity(self) -> Hashable:
        """The network while it lives, and how it is asked."""
        return weakref.ref(self.local.network), self.local.temperature, self.local.image_size

    def answers(self, questions: Sequence[Question], poll: Poll, in_flight: int = 1) -> Iterator[Answer]:
        """See VisionLanguageModel; `in_flight` questions are answered as one batch, or fewer where memory is short."""

        most = MostTogether(max(in_flight, 1))
        if len(questions) == 1:
            begin()

        def answers(batch: Sequence[Question]) -> list[str | AnswerError]:
            comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
            # The bar of several questions counts questions, and is their caller's.
            bar = comfy.utils.ProgressBar(self.local.max_tokens) if len(questions) == 1 else None

            def advance() -> None:
                poll()
                if bar is not None:
                    bar.update(1)

            device = self.patcher.load_device
            written = within_memory(lambda part: self.local.answers(part, device, advance), batch, most)
            return [whole(text, complete, self.local.max_tokens) for text, complete in written]

        return in_batches(questions, in_flight, answers, poll)
