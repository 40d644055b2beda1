"""What AR Token Restorer will take, from the same squares, prompts and caches as its run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...models.pure.config import ChameleonConfig
from ...models.pure.options import cache_bytes
from ...models.pure.prompt import image_block, prompt_ids
from ..estimate import RunEstimate, Stage
from .model import ARRestorer, codes_memory
from .restore import MAX_TOGETHER, NODE, TOKEN_PIXELS, PURERestoreOptions, sized
from .tokenizer import TextTokenizer


@dataclass(frozen=True)
class Parts:
    """What is known of a model before or after it is loaded. Bytes."""

    config: ChameleonConfig
    dtype: torch.dtype
    """What it computes in."""
    tokenizer: TextTokenizer
    weights: int
    vqgan: int
    """The VQGAN's weights."""
    vq_base: int
    """The VQGAN's channels at full resolution."""


def prompt_length(tokenizer: TextTokenizer, options: PURERestoreOptions) -> int:
    """Tokens of a square's prompt, which are as many whatever it shows."""
    side = options.tiles.side // TOKEN_PIXELS
    some = torch.full((side, side), 4, dtype=torch.long)
    return len(prompt_ids(tokenizer, options.instruction, image_block(some)))


def estimate_run(parts: Parts, options: PURERestoreOptions) -> RunEstimate:
    """Of one image."""
    tiles = len(options.tiles.grid(options.width, options.height))
    together = min(options.together or MAX_TOGETHER, tiles)
    tokens = (options.tiles.side // TOKEN_PIXELS) ** 2
    # The run asks for one sequence first, and for more where they turn out to fit; for those that are told at once.
    asked = min(options.together, tiles) if options.together else 1
    prompt = prompt_length(parts.tokenizer, options)
    caches = [cache_bytes(parts.config, sized(options), count, prompt, parts.dtype) for count in (asked, 1)]
    vq_memory = codes_memory(parts.vq_base, options.tiles.side, options.tiles.side)
    preview = vq_memory if options.preview else 0
    drawing = Stage(
        "drawing", parts.weights + (parts.vqgan if options.preview else 0), caches[0] + preview, caches[1] + preview
    )
    return RunEstimate(
        NODE,
        options.width,
        options.height,
        tiles,
        tokens * -(-tiles // together),
        [Stage("image codes", parts.vqgan, vq_memory), drawing],
    )


def estimate(restorer: ARRestorer, options: PURERestoreOptions) -> RunEstimate:
    """Of one image, for the node's own inputs. Raises ValueError for options that the run would refuse."""
    parts = Parts(
        restorer.config,
        restorer.dtype,
        restorer.tokenizer,
        int(restorer.backbone.model_size()),
        int(restorer.vqgan.model_size()),
        restorer.vq.config.base,
    )
    return estimate_run(parts, options)
