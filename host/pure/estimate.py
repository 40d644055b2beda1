"""What AR Token Restorer will take, from the same squares, prompts and caches as its run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...models.pure.config import ChameleonConfig
from ...models.pure.grid import Grid
from ...models.pure.options import cache_bytes
from ...models.pure.prompt import image_block, prompt_ids
from ...models.pure.vqgan import VQConfig
from ..estimate import RunEstimate, Stage
from ..forwards import for_cards, free_beside, pure_forwards, vqgan_forward
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
    vq: VQConfig | None = None
    """The VQGAN's, where the run's forwards are to be counted."""


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
    weights = parts.weights + (parts.vqgan if options.preview else 0)
    drawing = Stage("drawing", weights, caches[0] + preview, caches[1] + preview)
    codes = Stage("image codes", parts.vqgan, vq_memory)
    if parts.vq is not None:
        drawing, codes = (
            counted(drawing, parts, parts.vq, options, tiles, prompt),
            encoded(codes, parts.vq, options, tiles),
        )
    return RunEstimate(
        NODE,
        options.width,
        options.height,
        tiles,
        tokens * -(-tiles // together),
        [codes, drawing],
    )


def counted(stage: Stage, parts: Parts, vq: VQConfig, options: PURERestoreOptions, tiles: int, prompt: int) -> Stage:
    """The stage with what its forwards come to, the text that the model writes left out: its length is its own."""
    generation = sized(options)
    one = cache_bytes(parts.config, generation, 1, prompt, parts.dtype)
    free = free_beside(stage.weights)
    together = options.together or max(1, min(MAX_TOGETHER, int(free / (one + stage.work))))
    together = min(together, tiles)
    image = Grid(*generation.size)
    capacity = prompt + generation.max_text_tokens + generation.image_length
    # Halfway through the picture, which stands for all its tokens; the branch without a prompt sees the picture alone.
    seen = image.length // 2
    lengths = (prompt + seen, seen) if generation.guided else (prompt + seen,)
    read, draw = pure_forwards(parts.config, parts.dtype, together, prompt, lengths, capacity)
    runs = tiles / together
    caches = cache_bytes(parts.config, generation, together, prompt, parts.dtype)
    cost = for_cards(read.times(tiles) + draw.times(runs * image.tokens), parts.dtype)
    pixels = vqgan_forward(vq, options.tiles.side, decode=True)
    shown = pixels.peak if options.preview else 0
    return replace(stage, peak=caches + max(read.peak, draw.peak, shown), cost=cost + pixels.times(tiles))


def encoded(stage: Stage, vq: VQConfig, options: PURERestoreOptions, tiles: int) -> Stage:
    forward = vqgan_forward(vq, options.tiles.side, decode=False)
    return replace(stage, peak=forward.peak, cost=forward.times(tiles))


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
