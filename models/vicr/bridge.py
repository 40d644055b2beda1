"""The Vision-Context Bridge: the CLIP embedding of the low-quality image as FLUX's global context (arXiv 2606.00704).

c_g = a * (W2 gelu(W1 LayerNorm(v) + b1) + b2), with v the projected image embedding of CLIP ViT-L/14, 768 wide, and a
learned scalar a. The paper leaves open whether v is normalised (here it is not) and where c_g goes; the width of the
file decides that: FLUX's hidden size (3072) joins the modulation vector, beside the pooled text, and the pooled text's
width (768) is added to that.

The paper compares this with two simpler ways in: CLIP's tokens beside the text tokens (here the same network on every
token, to the text's width), and CLIP's vector without a bridge (`NoBridge`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5

KEYS = ("norm.weight", "norm.bias", "proj_in.weight", "proj_in.bias", "proj_out.weight", "proj_out.bias", "scale")

PREFIXES = ("vcb.", "bridge.", "module.")
"""What trainers put before the names, alone or one before the other."""


def strip_prefixes(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict without any of PREFIXES that all its names begin with."""
    stripped = dict(state_dict)
    while stripped:
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in stripped)), None)
        if prefix is None:
            break
        stripped = {key[len(prefix) :]: value for key, value in stripped.items()}
    return stripped


@dataclass(frozen=True)
class BridgeConfig:
    """The sizes of a bridge."""

    embedding: int = 768
    """Width of what CLIP gives: 768 for the image embedding of ViT-L/14, 1024 for its tokens."""
    hidden: int = 3072
    """Width between the projections."""
    width: int = 3072
    """Width of the result."""
    scale_shape: tuple[int, ...] = ()
    """() or (1,), as files have it."""

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> BridgeConfig:
        """The sizes of a state dict. Raises KeyError for the first tensor a bridge lacks, ValueError for a shape no
        bridge has."""
        for key in KEYS:
            if key not in shapes:
                raise KeyError(key)
        for key in ("proj_in.weight", "proj_out.weight"):
            if len(shapes[key]) != 2:
                raise ValueError(f"a two-dimensional {key} (it is {list(shapes[key])})")
        if shapes["scale"] not in ((), (1,)):
            raise ValueError(f"a single scale (it is {list(shapes['scale'])})")
        hidden, embedding = shapes["proj_in.weight"]
        return cls(embedding, hidden, shapes["proj_out.weight"][0], shapes["scale"])


class VisionContextBridge(nn.Module):
    """CLIP image embeddings `[B, embedding]` -> context vectors `[B, width]`; tokens `[B, N, embedding]` alike."""

    def __init__(self, config: BridgeConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        self.config = config
        options = {"dtype": dtype, "device": device}
        self.norm = operations.LayerNorm(config.embedding, eps=LAYER_NORM_EPS, **options)
        self.proj_in = operations.Linear(config.embedding, config.hidden, **options)
        self.proj_out = operations.Linear(config.hidden, config.width, **options)
        self.scale = nn.Parameter(torch.ones(config.scale_shape, **options))

    def forward(self, embeds: Tensor) -> Tensor:
        context = self.proj_out(F.gelu(self.proj_in(self.norm(embeds))))
        return self.scale.to(context) * context


def untrained_bridge(config: BridgeConfig, seed: int) -> VisionContextBridge:
    """A bridge to start a training from, in float32: its output is zero, so that FLUX computes what it does without.

    The last projection is zero and the scale 1, not the other way round, which would leave the projections without a
    gradient at first. The first projection is Xavier-uniform, drawn from `seed`; the norm is the identity.
    """
    bridge = VisionContextBridge(config, device="meta").to_empty(device="cpu")
    bound = math.sqrt(6 / (config.embedding + config.hidden))
    with torch.no_grad():
        for name, parameter in bridge.named_parameters():
            parameter.fill_(1.0 if name in ("norm.weight", "scale") else 0.0)
        bridge.proj_in.weight.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
    return bridge


class NoBridge(nn.Module):
    """The paper's ablation without a bridge: CLIP's image embedding `[B, 768]` as it is."""

    def __init__(self):
        super().__init__()
        self.config = BridgeConfig(width=768)

    def forward(self, embeds: Tensor) -> Tensor:
        return embeds
