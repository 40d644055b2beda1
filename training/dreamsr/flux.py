"""FLUX with its MM-ControlNet, in diffusers' blocks: the network whose velocity the losses judge.

diffusers' own forward adds residuals to the image stream alone, so the blocks are run here, and the control acts on
both streams between them (eq. 1-2), at the places where the nodes act on the host's FLUX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...models.attention import scaled_dot_product
from ...models.dreamsr.mm_controlnet import ControlFeatures, MMControlNet, inject_image, inject_text
from ..flux.latent import pack, token_ids, unpack


class Prompts(NamedTuple):
    """Encoded prompts: tokens `[B, M, text width]` and pooled text `[B, pooled width]`."""

    tokens: Tensor
    pooled: Tensor


class ControlledFlux(nn.Module):
    """A FluxTransformer2DModel steered by an MM-ControlNet.

    control: None for plain FLUX. dit_blocks: index of the two-stream block that each control block acts on.
    text_residual: as in a file's metadata. Both networks compute in the precision they have, or in that of an
    autocast around them.
    """

    def __init__(
        self,
        transformer: nn.Module,
        control: MMControlNet | None,
        dit_blocks: Sequence[int],
        text_residual: bool = True,
    ):
        super().__init__()
        self.transformer = transformer
        self.control = control
        self.layer_at = {block: layer for layer, block in enumerate(dit_blocks)}
        self.text_residual = text_residual
        self.recompute = False
        """Whether blocks compute their activations again in the backward pass."""

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        prompts: Prompts,
        guidance: Tensor,
        condition: Tensor | None,
        local: Prompts | None = None,
    ) -> Tensor:
        """Velocity `[B, C, H, W]` in float32.

        x: the latent at time t `[B]`. prompts: the global ones, for FLUX. guidance `[B]`, the distilled scale.
        condition: what the control looks at, like x; None for plain FLUX. local: the patches' prompts for the control,
        None for the global ones.
        """
        size = (x.shape[-2], x.shape[-1])
        image, text, modulation, rotary = self.enter(x, t, prompts, guidance)
        features: Sequence[ControlFeatures] = ()
        if condition is not None:
            features = self.features(condition, t, local or prompts, guidance)
        for index, block in enumerate(self.transformer.transformer_blocks):
            text, image = self.run(block, image, text, modulation, rotary)
            if features and index in self.layer_at:
                image, text = self.run(self.inject, self.layer_at[index], features, image, text)
        for block in self.transformer.single_transformer_blocks:
            text, image = self.run(block, image, text, modulation, rotary)
        tokens = self.transformer.proj_out(self.transformer.norm_out(image, modulation))
        return unpack(tokens.float(), *size)

    def enter(
        self, x: Tensor, t: Tensor, prompts: Prompts, guidance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """The two streams before the first block, the modulation vector and the rotary tables."""
        network, dtype = self.transformer, self.dtype
        image = network.x_embedder(pack(x).to(dtype))
        text = network.context_embedder(prompts.tokens.to(dtype))
        # Time in full precision, guidance in that of the weights: as the host embeds them.
        scale = (1000 * guidance.to(dtype),) if network.config.guidance_embeds else ()
        modulation = network.time_text_embed(1000 * t.float(), *scale, prompts.pooled.to(dtype))
        positions = token_ids(x.shape[-2], x.shape[-1], x.device)
        at_zero = positions.new_zeros(prompts.tokens.shape[1], positions.shape[1])
        return image, text, modulation, network.pos_embed(torch.cat([at_zero, positions]))

    @property
    def dtype(self) -> torch.dtype:
        """That FLUX's inputs are cast to: its weights', or bfloat16 for quantised ones."""
        weight = self.transformer.time_text_embed.text_embedder.linear_1.weight
        return weight.dtype if weight.is_floating_point() else torch.bfloat16

    def features(self, condition: Tensor, t: Tensor, local: Prompts, guidance: Tensor) -> Sequence[ControlFeatures]:
        if self.control is None:
            raise ValueError("there is a condition, and no control to look at it")
        dtype = self.control.x_embedder.weight.dtype
        return self.control(
            condition.to(dtype),
            t,
            local.tokens.to(dtype),
            local.pooled.to(dtype),
            guidance,
            run_block=self.run if self.recompute else None,
        )

    def inject(
        self, layer: int, features: Sequence[ControlFeatures], image: Tensor, text: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Eq. 1 and 2 after the block that control block `layer` acts on."""
        assert self.control is not None
        feature = features[layer]
        stream = text.to(feature.text.dtype)
        update = self.control.text_update(layer, stream, feature.text, scaled_dot_product)
        return (
            inject_image(image, feature.image.to(image.dtype), 1.0),
            inject_text(text, update.to(text.dtype), 1.0, self.text_residual),
        )

    def run(self, block: Callable[..., tuple[Tensor, Tensor]], *inputs: Any) -> tuple[Tensor, Tensor]:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)
