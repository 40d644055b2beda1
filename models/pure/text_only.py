"""What the model says about images, without drawing them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .answer import Writer
from .cache import KVCache
from .draws import SeededDraws
from .generation import GenerationOptions
from .observer import Observer
from .session import Session
from .transformer import Chameleon


@torch.no_grad()
def write_texts(
    network: Chameleon,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    options: GenerationOptions,
    observer: Observer | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> list[list[int]]:
    """Text ids the model writes to each prompt before it would start the image: what `generate` lets it write.

    Arguments as in `generation.generate`. Raises GenerationError, naming the image, where no image would start.
    """
    weight = network.model.embed_tokens.weight
    device, dtype = device or weight.device, dtype or weight.dtype
    capacity = max(map(len, prompts)) + options.max_text_tokens + 1
    cache = KVCache.allocate(network.config, len(prompts), capacity, dtype, device)
    session = Session(network, cache, [0] * len(prompts), SeededDraws(seeds), observer or Observer(), dtype)
    hidden = session.read(prompts)
    writer = Writer(session, hidden, options.text_top_k, options.sampling.temperature, options.max_text_tokens)
    return writer.write(None)
