"""What VICR trains: FLUX.1 Fill with a LoRA, and the Vision-Context Bridge beside it (arXiv 2606.00704).

Transformers here are diffusers' FluxTransformer2DModel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...models.vicr.bridge import BridgeConfig, VisionContextBridge, untrained_bridge
from ...models.vicr.diptych import split
from ..engine.draws import Draws
from ..engine.method import Batch
from ..flow import noisy
from ..flux.latent import pack, pack_mask, token_ids, unpack
from .losses import LAYOUT, right_panel_loss

ADAPTED = (
    r"x_embedder"
    r"|transformer_blocks\.\d+\.(norm1\.linear|attn\.to_[qkv]|attn\.to_out\.0|ff\.net\.2)"
    r"|single_transformer_blocks\.\d+\.(norm\.linear|proj_mlp|proj_out|attn\.to_[qkv])"
)
"""The layers with a LoRA, a regular expression for diffusers' whole names. With rank 32 and the bridge they make the
paper's 127M parameters."""


VELOCITY = "velocity"
"""The turn of sampling; through forward, where FSDP gathers the weights."""


class GivenVector(nn.Module):
    """In place of FLUX's embedding of time, guidance and pooled text: the finished vector, given as the text's."""

    def forward(self, *vectors: Tensor) -> Tensor:
        return vectors[-1]


class DiptychFill(nn.Module):
    """FLUX Fill on diptychs, with the bridge's vector in the modulation vector or the pooled text, by its width."""

    def __init__(self, transformer: Any, bridge: VisionContextBridge | None, guidance: float):
        """guidance: what FLUX is told.

        Raises ValueError for a FLUX that reads no mask, and a bridge of no fitting width.
        """
        super().__init__()
        config = transformer.config
        self.latent_channels = config.out_channels // 4
        self.cell = fill_cell(config.in_channels, self.latent_channels)
        hidden = config.num_attention_heads * config.attention_head_dim
        if bridge is not None and bridge.config.width not in (hidden, config.pooled_projection_dim):
            raise ValueError(
                f"the bridge is {bridge.config.width} wide; it must be {hidden}, to join this model's modulation "
                f"vector, or {config.pooled_projection_dim}, to join its pooled text"
            )
        self.joins_modulation = bridge is not None and bridge.config.width == hidden
        self.guidance = guidance if config.guidance_embeds else None
        # Taken out so that time and guidance are embedded in full precision, and the bridge's vector can be added.
        self.embedder = transformer.time_text_embed
        transformer.time_text_embed = GivenVector()
        self.transformer = transformer
        self.bridge = bridge

    def vector(self, time: Tensor, pooled: Tensor, embeds: Tensor | None) -> Tensor:
        """The modulation vector `[B, hidden]`, of times `[B]`, pooled text `[B, 768]` and CLIP's `embeds`."""
        context = None if embeds is None or self.bridge is None else self.bridge(embeds)
        if context is not None and not self.joins_modulation:
            pooled = pooled + context.to(pooled)
        guidance = []
        if self.guidance is not None:
            # 1000 x guidance in the precision of the weights, as FLUX's own code and ComfyUI have it.
            guidance = [1000 * torch.full_like(time, self.guidance).to(pooled.dtype)]
        vector = self.embedder(1000 * time.float(), *guidance, pooled)
        return vector if context is None or not self.joins_modulation else vector + context.to(vector)

    def velocity(
        self, x: Tensor, masked: Tensor, time: Tensor, text: Tensor, pooled: Tensor, embeds: Tensor | None = None
    ) -> Tensor:
        """v(x, t) `[B, C, h, w]` of diptych latents.

        masked: the encoded diptych with its right panel empty, of the shape of x. text: `[B, N, E]`. embeds: CLIP's, or
        None for no context.
        """
        height, width = x.shape[-2:]
        mask = x.new_zeros(1, self.cell * height, self.cell * width)
        split(mask, LAYOUT)[1].fill_(1)
        channels = pack_mask(mask, self.cell).expand(len(x), -1, -1, -1)
        weight = self.embedder.text_embedder.linear_1.weight
        dtype = weight.dtype if weight.is_floating_point() else torch.bfloat16
        tokens = torch.cat([pack(x), pack(masked), pack(channels)], dim=-1).to(dtype)
        out = self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=text.to(dtype),
            pooled_projections=self.vector(time, pooled.to(dtype), embeds),
            timestep=time,
            img_ids=token_ids(height, width, x.device),
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device),
            return_dict=False,
        )[0]
        return unpack(out.float(), height, width)

    def forward(self, turn: str, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The loss of a prepared batch: clean, masked and noise `[B, C, h, 2 w]`, time `[B]`, text, pooled, embeds.

        turn VELOCITY: the `velocity` at `x` in place of clean and noise.
        """
        x = batch["x"] if turn == VELOCITY else noisy(batch["clean"], batch["noise"], batch["time"])
        conditions = (batch["time"], batch["text"], batch["pooled"], batch.get("embeds"))
        velocity = self.velocity(x, batch["masked"], *conditions)
        if turn == VELOCITY:
            return {"velocity": velocity}
        return {"loss": right_panel_loss(velocity, batch["clean"], batch["noise"])}


def fill_cell(inputs: int, latent_channels: int) -> int:
    """Pixels of a latent cell along each side, of a FLUX with `inputs` features: 8 for Fill's 384.

    Raises ValueError when they are not those of noise, masked image and a mask, each in 2 x 2 cells.
    """
    of_mask = inputs // 4 - 2 * latent_channels
    cell = round(max(of_mask, 0) ** 0.5)
    if inputs % 4 or cell == 0 or cell**2 != of_mask:
        raise ValueError(
            f"this FLUX reads {inputs} features; FLUX.1 Fill reads 384: noise, masked image and mask. "
            "Choose flux1-fill-dev.safetensors or the FLUX.1-Fill-dev folder."
        )
    return cell


def add_lora(transformer: Any, rank: int, seed: int) -> None:
    """Put an untrained LoRA of factor 1 (alpha = rank) on the layers of ADAPTED, in float32. It changes nothing yet."""
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED, lora_dropout=0.0, bias="none")
    with torch.random.fork_rng(), torch.device(next(transformer.parameters()).device):
        torch.manual_seed(seed)
        transformer.add_adapter(config)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def new_bridge(config: BridgeConfig, seed: int, device: torch.device | str = "cpu") -> VisionContextBridge:
    """An untrained bridge: its output is zero, so that it changes nothing yet, and it learns from the first step."""
    return untrained_bridge(config, seed).to(device)


def build_network(transformer: Any, rank: int, bridge: BridgeConfig | None, guidance: float, seed: int) -> DiptychFill:
    """The network for training: the transformer frozen, LoRA and bridge not."""
    device = next(transformer.parameters()).device
    transformer.requires_grad_(False)
    add_lora(transformer, rank, seed)
    if bridge is None:
        return DiptychFill(transformer, None, guidance)
    return DiptychFill(transformer, new_bridge(bridge, seed, device), guidance)


def trained(network: nn.Module) -> dict[str, Any]:
    """Parameters that training moves, by name."""
    return {name: value for name, value in network.named_parameters() if value.requires_grad}
