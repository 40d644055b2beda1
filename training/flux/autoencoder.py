"""FLUX's autoencoder as diffusers' AutoencoderKL, from ae.safetensors or a folder of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.state_dict import require_layers
from .files import WeightFiles, assemble, check, not_a

WHAT = "FLUX autoencoder"
PREFIXES = ("first_stage_model.", "vae.")
LATENT_CHANNELS, LATENT_SCALE, LATENT_SHIFT = 16, 0.3611, 0.1159
"""FLUX's network works on (latent - shift) * scale."""


class Autoencoder:
    """Images in -1..1 to latents as FLUX's network takes them, and back, by a frozen AutoencoderKL."""

    def __init__(self, network: Any):
        self.network = network

    @property
    def cell(self) -> int:
        """Pixels of a latent cell along each side: 8."""
        return 2 ** (len(self.network.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` in -1..1 -> the posterior's mean `[B, 16, H / 8, W / 8]`, scaled, float32."""
        # One by one: a batch of large canvases would take more memory than the training itself.
        latents = [self.network.encode(image[None].to(self.weight)).latent_dist.mode() for image in images]
        return (torch.cat(latents).float() - LATENT_SHIFT) * LATENT_SCALE

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents `[B, 16, h, w]` -> images `[B, 3, 8 h, 8 w]` in -1..1, float32."""
        raw = latents / LATENT_SCALE + LATENT_SHIFT
        return torch.cat([self.network.decode(latent[None].to(self.weight)).sample.float() for latent in raw])

    @property
    def weight(self) -> Tensor:
        return self.network.decoder.conv_in.weight


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Arguments of AutoencoderKL for tensors in the original names or diffusers'. Raises KeyError where one lacks."""
    own = "encoder.down.0.block.0.conv1.weight" in shapes
    level, block = ("encoder.down.", "block") if own else ("encoder.down_blocks.", "resnets")
    levels = require_layers(shapes, level)
    widths = [shapes[f"{level}{index}.{block}.0.conv1.weight"][0] for index in range(levels)]
    return {
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": require_layers(shapes, f"{level}0.{block}."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "scaling_factor": LATENT_SCALE,
        "shift_factor": LATENT_SHIFT,
    }


def load_autoencoder(path: Path, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """FLUX's autoencoder, frozen. Raises FileNotFoundError; ValueError for another file, naming what is missing."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    # diffusers takes its models' common methods from bases it gives no types for.
    network: Any = AutoencoderKL

    files = WeightFiles(path, "vae")
    names = files.without_prefix(*PREFIXES)
    shapes = {name: files.shapes[stored] for name, stored in names.items()}
    try:
        config = sizes(shapes)
    except (KeyError, ValueError, IndexError) as error:
        raise not_a(WHAT, files, f"it lacks {error}" if isinstance(error, KeyError) else error) from error
    if config["latent_channels"] != LATENT_CHANNELS:
        raise not_a(WHAT, files, f"its latents have {config['latent_channels']} channels, FLUX's {LATENT_CHANNELS}")
    with torch.device("meta"):
        expected = network(**config)
    own = "encoder.down.0.block.0.conv1.weight" in shapes

    def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return convert_ldm_vae_checkpoint(tensors, expected.config) if own else tensors

    empty = renamed({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    check(WHAT, files, expected, {name: tuple(value.shape) for name, value in empty.items()})
    tensors = {} if device.type == "meta" else renamed({name: files.read(stored) for name, stored in names.items()})
    return Autoencoder(assemble(lambda: network(**config), None, tensors.__getitem__, device, dtype))
