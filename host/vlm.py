"""Language models that see, on the host: its own text encoders that can write, and modules from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from comfy.text_encoders.llama import BaseGenerate
from torch import Tensor, nn
from torch.nn.functional import interpolate

T = TypeVar("T")
R = TypeVar("R")

SAMPLING = {"top_k": 64, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05, "presence_penalty": 0.0}
GAP = 16
"""Pixels of white between pictures that are put side by side."""
SIDE_BY_SIDE = "\n\nThe pictures are shown side by side in one image, picture 1 on the left."


class Managed(nn.Module):
    """Holds a foreign network: the host's patcher notes things on the module it manages."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


def managed(network: nn.Module) -> comfy.model_patcher.ModelPatcher:
    """A patcher through which the host loads and frees a network whose layers are torch's own.

    Such layers cannot be offloaded one by one: load it with force_full_load.
    """
    return comfy.model_patcher.ModelPatcher(
        Managed(network),
        load_device=comfy.model_management.text_encoder_device(),
        offload_device=comfy.model_management.text_encoder_offload_device(),
    )


def within_memory(run: Callable[[Sequence[T]], list[R]], batch: Sequence[T]) -> list[R]:
    """`run` of a batch; where memory does not suffice, of its halves one after the other.

    Raises what `run` raises, also for a single item that does not fit.
    """
    try:
        return run(batch)
    except Exception as error:
        comfy.model_management.raise_non_oom(error)
        if len(batch) == 1:
            raise
    # Out of the handler: the exception holds the failed run's tensors alive.
    comfy.model_management.soft_empty_cache()
    half = len(batch) // 2
    return within_memory(run, batch[:half]) + within_memory(run, batch[half:])


def weight_dtypes() -> dict[str, torch.dtype]:
    """Choices for the precision of a foreign network's weights on the device it will run on."""
    device = comfy.model_management.text_encoder_device()
    if comfy.model_management.is_device_cpu(device):
        default = torch.float32
    elif comfy.model_management.should_use_bf16(device):
        default = torch.bfloat16
    else:
        default = torch.float16
    return {"default": default, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
