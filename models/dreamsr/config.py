"""What an MM-ControlNet file is: sizes read from its tensors, and where it acts, from its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..state_dict import require_layers

Shape = Sequence[int]

METADATA_KEY = "realisr.mm_controlnet"
HEAD_DIM = 128
"""FLUX's rotary positions are made for heads of this size."""


@dataclass(frozen=True)
class MMControlNetConfig:
    """Sizes of one MM-ControlNet; the defaults are those for FLUX.1-dev."""

    hidden_size: int = 3072
    layers: int = 9
    """Number L of two-stream blocks."""
    in_features: int = 64
    """Channels of a 2 x 2 packed latent."""
    text_width: int = 4096
    """Of the text tokens (T5)."""
    pooled_width: int = 768
    """Of the pooled text (CLIP)."""
    mlp_hidden: int = 12288
    """Inner width of the two-stream blocks' MLPs."""
    context_hidden: int = 12288
    """Inner width of the text branch's MLPs, M_txt."""
    has_guidance: bool = True
    """Whether the distilled guidance scale is embedded."""

    @property
    def num_heads(self) -> int:
        return self.hidden_size // HEAD_DIM

    @property
    def latent_channels(self) -> int:
        return self.in_features // 4

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Shape]) -> MMControlNetConfig:
        """Read the sizes off tensor shapes. Raises KeyError naming the first tensor that is not there."""
        hidden, in_features = shapes["x_embedder.weight"]
        return cls(
            hidden_size=hidden,
            layers=require_layers(shapes, "transformer_blocks."),
            in_features=in_features,
            text_width=shapes["context_embedder.weight"][1],
            pooled_width=shapes["time_text_embed.text_embedder.linear_1.weight"][1],
            mlp_hidden=shapes["transformer_blocks.0.ff.net.0.proj.weight"][0],
            context_hidden=shapes["context_mlp.0.net.0.proj.weight"][0],
            has_guidance="time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        )


def spread_evenly(layers: int, depth: int) -> tuple[int, ...]:
    """The DiT blocks that L = `layers` control blocks act on by default: floor(l D / L) of D = `depth`."""
    return tuple(layer * depth // layers for layer in range(layers))


@dataclass(frozen=True)
class Injection:
    """Where and how the control blocks act on the DiT. The defaults are ours: the paper leaves both open."""

    dit_blocks: tuple[int, ...] | None = None
    """Index of the DiT's two-stream block that control block l acts on, for each l; None to spread them evenly."""
    text_residual: bool = True
    """Whether the text branch adds to the DiT's text stream, or replaces it as eq. 2 is printed."""

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], layers: int) -> Injection:
        """What a file's safetensors metadata says; defaults where it says nothing. Raises ValueError if malformed."""
        text = metadata.get(METADATA_KEY)
        if text is None:
            return cls()
        try:
            stated = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"its metadata {METADATA_KEY} is not JSON ({error})") from error
        if not isinstance(stated, dict):
            raise ValueError(f"its metadata {METADATA_KEY} is {text}, not a table")
        residual = stated.get("text_residual", True)
        if not isinstance(residual, bool):
            raise ValueError(f"text_residual in its metadata is {residual!r}, neither true nor false")
        blocks = stated.get("dit_blocks")
        return cls(None if blocks is None else checked_blocks(blocks, layers), residual)

    def to_metadata(self) -> dict[str, str]:
        stated: dict[str, Any] = {"text_residual": self.text_residual}
        if self.dit_blocks is not None:
            stated["dit_blocks"] = list(self.dit_blocks)
        return {METADATA_KEY: json.dumps(stated)}

    def blocks(self, layers: int, depth: int) -> tuple[int, ...]:
        """Index of the DiT block of each control block. Raises ValueError when a DiT of `depth` lacks one of them."""
        if self.dit_blocks is None:
            if layers > depth:
                raise ValueError(f"it has {layers} control blocks and this model only {depth} two-stream blocks")
            return spread_evenly(layers, depth)
        beyond = [block for block in self.dit_blocks if block >= depth]
        if beyond:
            raise ValueError(f"it acts on two-stream block {beyond[0]} and this model has {depth} (0 to {depth - 1})")
        return self.dit_blocks


def checked_blocks(blocks: Any, layers: int) -> tuple[int, ...]:
    """A list of DiT blocks as read from JSON. Raises ValueError unless it is `layers` different indices."""
    # bool is an int to Python.
    proper = isinstance(blocks, list) and all(type(block) is int and block >= 0 for block in blocks)
    if not proper or len(set(blocks)) != len(blocks) or len(blocks) != layers:
        raise ValueError(f"dit_blocks in its metadata is {blocks!r}, not {layers} different block numbers from 0")
    return tuple(blocks)
