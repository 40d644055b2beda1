"""PURE's backbone in training: the pack's own transformer, with dropout and its losses.

Not transformers' Chameleon: that class always masks image logits, gives each head a QK-norm row of its own where the
released model shares one, builds a VQ-VAE that PURE has no use for, and has no residual dropout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...models.pure.config import ChameleonConfig
from ...models.pure.decode import Generated, generate
from ...models.pure.options import GenerationOptions
from ...models.pure.transformer import Chameleon, Context, Layer, scaled_dot_product
from ...models.pure.vocabulary import Vocabulary
from ..engine.draws import Draws
from ..engine.method import Batch
from .config import LoRASettings
from .losses import token_losses


def causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """A `MaskedAttentionFn` where a mask without sides means every earlier position: kernels need no table for it."""
    if mask is None or mask.dim():
        return scaled_dot_product(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class TrainedLayer(Layer):
    """A block with dropout on both residual branches, whose activations may be computed again in the backward pass.

    What FSDP wraps: computing again is inside, so that its weights are there when it happens.
    """

    def __init__(self, config: ChameleonConfig, dropout: float, recompute: bool, dtype=None, device=None):
        super().__init__(config, dtype, device)
        self.dropout = nn.Dropout(dropout)
        self.recompute = recompute

    def forward(self, x: Tensor, index: int, context: Context) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.run, x, index, context, use_reentrant=False)
        return self.run(x, index, context)

    def run(self, x: Tensor, index: int, context: Context) -> Tensor:
        before, after = self.input_layernorm, self.post_attention_layernorm
        if self.swin_norm:
            x = x + self.dropout(before(self.attend(x, index, context)))
            return x + self.dropout(after(self.mlp(x)))
        x = x + self.dropout(self.attend(before(x), index, context))
        return x + self.dropout(self.mlp(after(x)))


class PURENetwork(nn.Module):
    """The transformer and its losses. Positions of padding come last, so attention needs no mask for them."""

    def __init__(
        self,
        config: ChameleonConfig,
        dropout: float = 0.05,
        z_loss: float = 0.0,
        recompute: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ):
        super().__init__()
        self.z_loss = z_loss
        self.transformer = Chameleon(config, dtype, device, attention=causal_attention)
        layers = [TrainedLayer(config, dropout, recompute, dtype, device) for _ in range(config.num_layers)]
        self.transformer.model.layers = nn.ModuleList(layers)

    def add_lora(self, settings: LoRASettings) -> None:
        """Freeze everything and put low-rank updates on the blocks' linear layers. Needs peft."""
        from peft import LoraConfig, inject_adapter_in_model

        self.requires_grad_(False)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=list(settings.parts),
        )
        inject_adapter_in_model(config, self.transformer)
        if settings.embeddings:
            self.transformer.model.embed_tokens.requires_grad_(True)
            self.transformer.lm_head.requires_grad_(True)

    def forward(self, turn: str, batch: Batch, draws: Draws | None = None) -> dict[str, Tensor]:
        """Losses of a prepared batch: `ids` `[B, T]`, and `rows`, `following`, `own` of `losses.counted_positions`."""
        ids = batch["ids"]
        everything = torch.ones((), dtype=torch.bool, device=ids.device)
        hidden = self.transformer(ids, mask=everything, dtype=compute_dtype(ids.device))
        counted = hidden.flatten(0, 1).index_select(0, batch["rows"])
        losses = token_losses(counted, batch["following"], batch["own"], self.transformer.logits)
        if not self.z_loss:
            return {"loss": losses["cross_entropy"], "accuracy": losses["accuracy"]}
        loss = losses["cross_entropy"] + self.z_loss * losses["z_loss"]
        return {"loss": loss, **{name: value.detach() for name, value in losses.items()}}

    def answer(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], options: GenerationOptions, vocabulary: Vocabulary
    ) -> list[Generated]:
        """`models.pure.decode.generate`: a method of the whole network, so that FSDP gathers its weights around it."""
        dtype = compute_dtype(self.transformer.model.embed_tokens.weight.device)
        return generate(self.transformer, prompts, seeds, options, vocabulary, dtype=dtype)


def compute_dtype(device: torch.device) -> torch.dtype | None:
    """What hidden states are kept in: autocast's type, as in the released model's training; None without autocast."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None
