"""Carrying a Vision-Context Bridge's vector from the conditioning into FLUX (arXiv 2606.00704).

The vector is per condition, so it travels in the conditioning: appended to pooled_output, behind the columns FLUX
reads. A FLUX without the patch below cuts the tail off and sees the text alone. The patch lets FLUX hand the whole
row to a stand-in for `vector_in`, which adds the tail to the pooled text's share of the modulation vector. It is put
in by an injection, so it always lands in the network that is about to run (clones, copies for other GPUs, reloads),
and is out while the host patches weights; the layers inside keep their names, so LoRAs and offloading see no change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.conds
import comfy.ldm.flux.model
import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.patcher_extension import PatcherInjection, WrappersMP
from torch import Tensor, nn

from ...models.vicr.bridge import NoBridge, VisionContextBridge
from ..copies import copy_of
from ..families import model_in_words
from ..types import Conditioning, Model

KEY = "realisr_vision_context_bridge"


class TailEmbedder(nn.Module):
    """FLUX's `vector_in` for rows `[B, width + tail]`: the tail is added to the embedding of what precedes it.

    Rows of any other length have no tail. It has the layers of `embedder`, under the same names.
    """

    def __init__(self, embedder: nn.Module, params: Any, width: int, tail: int):
        super().__init__()
        self.width, self.tail = width, tail
        self._modules = embedder._modules
        # Past nn.Module's bookkeeping: registered, the layers would appear twice.
        object.__setattr__(self, "embedder", embedder)
        self.params = params

    def forward(self, rows: Tensor) -> Tensor:
        vector = self.embedder(rows[:, : self.width])
        if rows.shape[1] == self.width + self.tail:
            vector = vector + rows[:, self.width :]
        return vector


@dataclass(frozen=True)
class VectorWidths:
    """What a FLUX takes, and the patch that lets it take more."""

    pooled: int
    """Columns of pooled_output that it embeds (768)."""
    hidden: int
    """Width of its modulation vector (3072)."""
    text: int
    """Width of its text tokens (4096)."""

    def inject(self, patcher: Model) -> None:
        network = patcher.model.diffusion_model
        if isinstance(network.vector_in, TailEmbedder):
            return
        original = network.params
        network.vector_in = TailEmbedder(network.vector_in, original, self.pooled, self.hidden)
        network.params = replace(original, vec_in_dim=self.pooled + self.hidden)

    @staticmethod
    def eject(patcher: Model) -> None:
        network = patcher.model.diffusion_model
        if isinstance(network.vector_in, TailEmbedder):
            network.params, network.vector_in = network.vector_in.params, network.vector_in.embedder

    def pad(self, executor, model, conds, *args):
        """Wrapper of one evaluation: conditions without a tail get zeros, so that they batch with those that have."""
        return executor(model, [None if cond is None else [self.padded(c) for c in cond] for cond in conds], *args)

    def padded(self, cond: dict[str, Any]) -> dict[str, Any]:
        rows = cond["model_conds"].get("y")
        if rows is None or rows.cond.shape[1] == self.pooled + self.hidden:
            return cond
        longer = F.pad(rows.cond[:, : self.pooled], (0, self.hidden))
        return {**cond, "model_conds": {**cond["model_conds"], "y": comfy.conds.CONDRegular(longer)}}


def vector_widths(model: Model) -> VectorWidths:
    """Widths of a FLUX MODEL's vectors. Raises ValueError for a model without a pooled text embedding."""
    network = model.model.diffusion_model
    sizes = getattr(model.model.model_config, "unet_config", {})
    if not isinstance(network, comfy.ldm.flux.model.Flux) or not sizes.get("vec_in_dim"):
        raise ValueError(
            f"The bridge adds to FLUX.1's modulation vector, and {model_in_words(model)} is connected to model, which "
            "has none. Connect FLUX.1 Fill from Load Diffusion Model."
        )
    return VectorWidths(sizes["vec_in_dim"], sizes["hidden_size"], sizes["context_in_dim"])


def bridge_of(model_patch: Model) -> VisionContextBridge | NoBridge:
    """The bridge inside a MODEL_PATCH. Raises ValueError when it holds something else."""
    network = model_patch.model
    if not isinstance(network, VisionContextBridge | NoBridge):
        raise ValueError(
            f"The connected MODEL_PATCH is a {type(network).__name__}, not a Vision-Context Bridge. "
            "Connect Load Vision-Context Bridge."
        )
    return network


def context_vector(model_patch: Model, clip_vision_output: Any) -> Tensor:
    """The bridge's vectors `[B, width]` of the images CLIP has seen, float32, on the host's intermediate device.

    Raises ValueError when CLIP's embedding is missing or not of the bridge's width.
    """
    return through_bridge(model_patch, getattr(clip_vision_output, "image_embeds", None), "image embeddings", 2)


def context_tokens(model_patch: Model, clip_vision_output: Any) -> Tensor:
    """As context_vector, the tokens `[B, N, width]` of CLIP's last hidden state, the class token first."""
    return through_bridge(model_patch, getattr(clip_vision_output, "last_hidden_state", None), "image tokens", 3)


def through_bridge(model_patch: Model, seen: Tensor | None, what: str, dims: int) -> Tensor:
    bridge = bridge_of(model_patch)
    found = "none" if seen is None else f"{seen.shape[-1]} wide"
    if seen is None or seen.ndim != dims or seen.shape[-1] != bridge.config.embedding:
        raise ValueError(
            f"This bridge reads {what} {bridge.config.embedding} wide, the CLIP_VISION_OUTPUT's are {found}. "
            "Encode the image with CLIP ViT-L/14 (clip_vision_l.safetensors or clip-vit-large-patch14)."
        )
    comfy.model_management.load_models_gpu([model_patch])
    context = bridge(seen.to(device=model_patch.load_device, dtype=torch.float32))
    return context.to(comfy.model_management.intermediate_device())


def append_tail(rows: Tensor | None, vector: Tensor, widths: VectorWidths) -> Tensor:
    """pooled_output `[B, pooled]` or with a tail already, plus the vector as tail, or added to the one there."""
    rows = pooled_rows(rows, vector, widths)
    if rows.shape[1] != widths.pooled + widths.hidden:
        rows = F.pad(rows[:, : widths.pooled], (0, widths.hidden))
    return add_columns(rows, vector, widths.pooled)


def add_columns(rows: Tensor, vector: Tensor, first: int) -> Tensor:
    """`rows` with `vector` `[B, W]` added to W columns from `first` on; batches as in same_batch."""
    rows, vector = same_batch(rows, vector.to(rows))
    return rows + F.pad(vector, (first, rows.shape[1] - first - vector.shape[1]))


def same_batch(rows: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """A conditioning's rows and what belongs to images; either may have one entry for all of the other's.

    Raises ValueError when both have several, and not as many.
    """
    if 1 not in (len(rows), len(seen)) and len(rows) != len(seen):
        raise ValueError(
            f"CLIP has seen {len(seen)} images, this conditioning is for {len(rows)}. Encode one image, or as many as "
            "there are prompts."
        )
    batch = max(len(rows), len(seen))
    return rows.expand(batch, *rows.shape[1:]), seen.expand(batch, *seen.shape[1:])


def apply_bridge(
    model: Model, conditioning: Conditioning, model_patch: Model, clip_vision_output: Any, strength: float
) -> tuple[Model, Conditioning]:
    """The MODEL and CONDITIONING with what the bridge gives, times `strength`; both as they were at strength 0.

    The bridge's width says where it goes. FLUX's hidden width: to the modulation vector. The pooled text's: added to
    pooled_output, which needs no patch. The text tokens': every token of CLIP's, after those of the text, an ablation
    of the paper. Bridges applied one after another add up. Raises ValueError for parts that do not fit together.
    """
    widths = vector_widths(model)
    width = bridge_of(model_patch).config.width
    if width not in (widths.hidden, widths.pooled, widths.text):
        raise ValueError(
            f"The bridge gives {width}, this model has hidden {widths.hidden}, pooled {widths.pooled} and text "
            f"{widths.text}: it was trained for another model. Choose a bridge of one of these widths (FLUX.1: 3072, "
            "768 or 4096) in Load Vision-Context Bridge."
        )
    of_image = width in (widths.hidden, widths.pooled)
    context = (context_vector if of_image else context_tokens)(model_patch, clip_vision_output) * strength
    if strength == 0:
        return model, conditioning
    if not of_image:
        return model, [[append_tokens(text, context), options] for text, options in conditioning]
    if width != widths.hidden:
        return model, with_pooled(conditioning, lambda rows: add_to_pooled(rows, context, widths))
    return patched(model, widths), with_pooled(conditioning, lambda rows: append_tail(rows, context, widths))


def append_tokens(text: Tensor, tokens: Tensor) -> Tensor:
    """Text tokens `[b, N, E]` followed by others `[B, M, E]`; batches as in same_batch."""
    return torch.cat(same_batch(text, tokens.to(text)), dim=1)


def add_to_pooled(rows: Tensor | None, vector: Tensor, widths: VectorWidths) -> Tensor:
    """pooled_output with the vector added to the columns FLUX embeds."""
    return add_columns(pooled_rows(rows, vector, widths), vector, 0)


def pooled_rows(rows: Tensor | None, vector: Tensor, widths: VectorWidths) -> Tensor:
    """pooled_output, or the zeros FLUX takes for it. Raises ValueError for one narrower than FLUX reads."""
    if rows is None:
        return vector.new_zeros(1, widths.pooled)
    if rows.shape[1] < widths.pooled:
        raise ValueError(
            f"The conditioning's pooled_output is {rows.shape[1]} wide, this model reads {widths.pooled}. Encode the "
            "prompt with FLUX's text encoders (DualCLIPLoader, type flux)."
        )
    return rows


def with_pooled(conditioning: Conditioning, change: Callable[[Tensor | None], Tensor]) -> Conditioning:
    return [
        [text, {**options, "pooled_output": change(options.get("pooled_output"))}] for text, options in conditioning
    ]


def patched(model: Model, widths: VectorWidths) -> Model:
    """A clone of a FLUX MODEL that reads tails; one that does already is cloned as it is."""
    clone = copy_of(model)
    if not clone.get_injections(KEY):
        clone.set_injections(KEY, [PatcherInjection(widths.inject, widths.eject)])
        clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, widths.pad)
    return clone
