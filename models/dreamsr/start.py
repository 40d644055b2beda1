"""Where an untrained MM-ControlNet's tensors come from: FLUX's blocks, or zeros and noise that change nothing yet."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def copied_name(name: str, blocks: tuple[int, ...]) -> str:
    """What a tensor of control block l is called in the block of the transformer that it is copied from."""
    head, _, rest = name.partition("transformer_blocks.")
    layer, _, leaf = rest.partition(".")
    return name if head or not layer else f"transformer_blocks.{blocks[int(layer)]}.{leaf}"


def untrained(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A tensor FLUX has no counterpart of: zero where it feeds the DiT, Xavier-uniform before that."""
    value = torch.zeros(shape)
    feeds_dit = name.startswith("controlnet_blocks.") or ".net.2." in name
    if name.endswith(".weight") and not feeds_dit:
        bound = math.sqrt(6 / sum(shape))
        value.uniform_(-bound, bound, generator=generator)
    return value
