"""Small autoencoders in the layouts VOSR's are published in, made from a seed (see `checkpoints`)."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch

from .checkpoints import Shapes, StateDict, autoencoder_kl_shapes, conv, fill, linear, norm

LIGHT_WIDTHS = (32, 64, 32, 32)


def sd21_vae(seed: int = 0) -> StateDict:
    """The SD 2.1 autoencoder in latent-diffusion naming, 32 to 128 wide; about 10 MB."""
    return fill(autoencoder_kl_shapes(latent_channels=4, encoder_width=32, decoder_width=32), seed)


def light_decoder(seed: int = 0, widths: tuple[int, ...] = LIGHT_WIDTHS) -> dict[str, Any]:
    """The content of a sd21_lwdecoder.pth: its config and its tensors."""
    config = {"in_channels": 4, "out_channels": 3, "block_out_channels": list(widths), "layers_per_block": 2}
    return {"config": config, "model_state_dict": fill(light_decoder_shapes(widths), seed)}


def light_decoder_shapes(widths: tuple[int, ...]) -> Shapes:
    deepest = widths[-1]
    yield from conv("conv_in", 4, deepest, 3)
    for block in range(2):
        yield from resnet(f"mid_block.resnets.{block}", deepest, deepest)
    yield from norm("mid_block.attentions.0.group_norm", deepest)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from linear(f"mid_block.attentions.0.{part}", deepest, deepest)
    before = deepest
    for stage, width in enumerate(reversed(widths)):
        for block in range(3):
            yield from resnet(f"up_blocks.{stage}.resnets.{block}", before, width)
            before = width
        if stage < len(widths) - 1:
            yield from conv(f"up_blocks.{stage}.upsamplers.0.conv", width, width, 3)
    yield from norm("conv_norm_out", widths[0])
    yield from conv("conv_out", widths[0], 3, 3)


def resnet(name: str, before: int, width: int) -> Shapes:
    yield from norm(f"{name}.norm1", before)
    yield from conv(f"{name}.conv1", before, width, 3)
    yield from norm(f"{name}.norm2", width)
    yield from conv(f"{name}.conv2", width, width, 3)
    if before != width:
        yield from conv(f"{name}.conv_shortcut", before, width, 1)


def qwen_vae(seed: int = 0, base_dim: int = 8) -> StateDict:
    """The Qwen-Image 2D autoencoder; 16 latent channels."""
    from realisr.models.vosr.qwen_vae import QwenImageVAE, QwenVAEConfig

    module = QwenImageVAE(QwenVAEConfig(base_dim=base_dim), device="meta")
    return randomised(module, seed)


def randomised(module: Any, seed: int = 0) -> StateDict:
    """Random weights for a module's parameters, also of one on the meta device."""
    return fill(((name, tuple(value.shape)) for name, value in module.named_parameters()), seed)


def patch_vae(seed: int = 0) -> Any:
    """A VAE of 16 channels and 8 pixels a cell, of one convolution each way: for sizes where a deeper one takes long.

    It tells the host that it needs much memory, so that it works in tiles.
    """
    from realisr.host.vosr.autoencoders import ModuleVAE

    module = torch.nn.Module()
    weights = fill(chain(conv("encoder", 3, 16, 8), conv("decoder", 16, 3 * 64, 1)), seed)
    module.encoder, module.decoder = torch.nn.Conv2d(3, 16, 8, stride=8), torch.nn.Conv2d(16, 3 * 64, 1)
    module.encode = module.encoder.forward
    module.decode = lambda latent: torch.nn.functional.pixel_shuffle(module.decoder(latent), 8)
    return ModuleVAE(module, weights, 16, 8, lambda shape, dtype: 1e15, lambda shape, dtype: 1e15)
