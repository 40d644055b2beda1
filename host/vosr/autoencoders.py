"""Autoencoders as ComfyUI VAE objects: SD 2.1 with its own or the light decoder, Qwen-Image 2D, pixel unshuffle.

Latents on the wires are what the autoencoder makes, not normalised: that is the diffusion model's latent format's
part. Everything runs in float32 unless ComfyUI is told otherwise (--fp16-vae, --bf16-vae): the reference does, the
encoder's output conditions every step, and the networks are small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.diffusers_convert
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.diffusionmodules.model import Decoder, vae_attention
from torch import Tensor, nn

from ...models.state_dict import count_layers, require_keys, shapes_of, sizes_of
from ...models.vosr.pixel_vae import PixelUnshuffleVAE
from ...models.vosr.qwen_vae import LOGVAR_RANGE, QwenImageVAE, QwenVAEConfig

NORM_GROUPS = 32
QWEN_BASE_DIM = 96
SD_LATENT_CHANNELS = 4
SD_TOP_WIDTH = 256
"""Widest layer of the SD decoder at full resolution, which its memory goes with."""

MemoryEstimate = Callable[[Sequence[int], torch.dtype], float]


def vae_dtype() -> torch.dtype:
    """float32, or what the command line asks for."""
    return comfy.model_management.vae_dtype(comfy.model_management.vae_device(), [torch.float32])


class ModuleVAE(comfy.sd.VAE):
    """A VAE around an autoencoder the host does not know: a module with `encode` and `decode` of `[B, C, H, W]`.

    memory_encode, memory_decode: bytes for one image or latent of a shape `[B, C, H, W]`.
    """

    def __init__(
        self,
        module: nn.Module,
        state_dict: Mapping[str, Tensor],
        latent_channels: int,
        downscale: int,
        memory_encode: MemoryEstimate,
        memory_decode: MemoryEstimate,
    ):
        # The host's constructor knows autoencoders by tensor names; its weightless one sets every default.
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=vae_dtype())
        self.latent_channels = latent_channels
        self.downscale_ratio = self.upscale_ratio = downscale
        self.memory_used_encode, self.memory_used_decode = memory_encode, memory_decode
        # Without weights there is nothing to offload.
        self.disable_offload = not state_dict
        self.size = None
        self.first_stage_model = module.eval().to(self.vae_dtype)
        comfy.model_management.archive_model_dtypes(module)
        patcher = comfy.model_patcher.CoreModelPatcher if state_dict else comfy.model_patcher.ModelPatcher
        self.patcher = patcher(
            module, load_device=self.device, offload_device=comfy.model_management.vae_offload_device()
        )
        module.load_state_dict(state_dict, strict=True, assign=self.patcher.is_dynamic())
        self.model_size()


def latent_diffusion_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A KL autoencoder's tensors (or one half of them) in latent-diffusion naming, from it or from diffusers naming."""
    if any("_blocks." in key or "mid_block." in key for key in state_dict):
        return comfy.diffusers_convert.convert_vae_state_dict(dict(state_dict))
    return dict(state_dict)


def stage_widths(shapes: Mapping[str, Sequence[int]], stages: str) -> list[int]:
    """Output widths of `encoder.down` or `decoder.up`, finest resolution first; empty without that half."""
    count = count_layers(shapes, f"{stages}.")
    return [shapes[f"{stages}.{stage}.block.0.conv1.weight"][0] for stage in range(count)]


def blocks_in_stage(shapes: Mapping[str, Sequence[int]], stage: str) -> int:
    return count_layers(shapes, f"{stage}.block.")


def decoder_settings(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What the host's Decoder is told of these tensors beside what all decoders have; widths are given as they are.

    The light decoder's are no multiples of its first one.
    """
    return {
        "ch": 1,
        "ch_mult": stage_widths(shapes, "decoder.up"),
        "num_res_blocks": blocks_in_stage(shapes, "decoder.up.0") - 1,
    }


def check_decoder(what: str, source: str, state_dict: Mapping[str, Tensor]) -> None:
    """Raises ValueError naming the file unless its `decoder.*`, in latent-diffusion naming, are a whole decoder."""
    shapes = shapes_of(state_dict)
    with sizes_of(what, source, state_dict), torch.device("meta"):
        latent_channels = shapes["decoder.conv_in.weight"][1]
        decoder = Decoder(**shared_settings(latent_channels), **decoder_settings(shapes))
        expected = {f"decoder.{key}": value for key, value in decoder.state_dict().items()}
    require_keys(what, source, expected, state_dict)


def shared_settings(latent_channels: int) -> dict[str, Any]:
    """What the host's Encoder and Decoder of an SD 2.1 VAE are both told."""
    return {
        "double_z": True,
        "z_channels": latent_channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "attn_resolutions": [],
        "dropout": 0.0,
    }


def kl_settings(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Arguments of the host's AutoencoderKL for tensors of these shapes, in latent-diffusion naming.

    Raises ValueError when they are no whole autoencoder of that family.
    """
    down, up = stage_widths(shapes, "encoder.down"), stage_widths(shapes, "decoder.up")
    if not down or not up:
        raise ValueError(f"there is no {'encoder' if not down else 'decoder'} of a KL autoencoder")
    if len(down) != len(up):
        raise ValueError(f"an encoder of {len(down)} resolutions beside a decoder of {len(up)}")
    base = math.gcd(*down)
    if any(width % NORM_GROUPS for width in (*down, *up)) or down[0] != base:
        raise ValueError(f"encoder widths {down} and decoder widths {up}")
    latent_channels = shapes["decoder.conv_in.weight"][1]
    shared = shared_settings(latent_channels)
    encoder = {
        "ch": base,
        "ch_mult": [width // base for width in down],
        "num_res_blocks": blocks_in_stage(shapes, "encoder.down.0"),
    }
    decoder = {**shared, **decoder_settings(shapes)}
    return {"ddconfig": {**shared, **encoder}, "decoder_ddconfig": decoder, "embed_dim": latent_channels}


def checked_kl_settings(source: str, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The same, when the tensors are exactly those of the SD 2.1 VAE; its decoder may have any widths.

    Raises ValueError naming the first tensors that do not fit, or for another number of latent channels.
    """
    with sizes_of("SD 2.1 VAE", source, state_dict):
        settings = kl_settings(shapes_of(state_dict))
    if settings["embed_dim"] != SD_LATENT_CHANNELS:
        raise ValueError(
            f"{source} is a KL autoencoder with {settings['embed_dim']} latent channels; the SD 2.1 VAE has "
            f"{SD_LATENT_CHANNELS}. VOSR 0.5B models need stable-diffusion-2-1-base's VAE, 1.4B models the "
            "Qwen-Image VAE."
        )
    with sizes_of("SD 2.1 VAE", source, state_dict), torch.device("meta"):
        expected = AutoencoderKL(**settings).state_dict()
    require_keys("SD 2.1 VAE", source, expected, state_dict)
    return settings


def kl_vae(source: str, state_dict: Mapping[str, Tensor]) -> comfy.sd.VAE:
    """VAE of an SD 2.1 autoencoder in latent-diffusion naming. Raises ValueError as `checked_kl_settings` does."""
    settings = checked_kl_settings(source, state_dict)
    vae = comfy.sd.VAE(sd=dict(state_dict), config={"params": settings}, dtype=vae_dtype())
    full_decode = vae.memory_used_decode
    share = max(settings["decoder_ddconfig"]["ch_mult"][:2]) / SD_TOP_WIDTH
    vae.memory_used_decode = lambda shape, dtype: full_decode(shape, dtype) * share
    return vae


def qwen_vae(source: str, state_dict: Mapping[str, Tensor]) -> ModuleVAE:
    """VAE of the Qwen-Image 2D autoencoder. Raises ValueError naming the first tensors that do not fit."""
    with sizes_of("Qwen-Image 2D VAE", source, state_dict):
        config = QwenVAEConfig.from_shapes(shapes_of(state_dict))
        expected = QwenImageVAE(config, device="meta").state_dict()
    require_keys("Qwen-Image 2D VAE", source, expected, state_dict)
    module = QwenImageVAE(config, operations=comfy.ops.disable_weight_init, attention=vae_attention())
    share = config.base_dim / QWEN_BASE_DIM

    def memory(per_pixel: float, pixels: int, dtype: torch.dtype) -> float:
        return per_pixel * pixels * share * comfy.model_management.dtype_size(dtype)

    # Bytes per pixel as the host estimates for this network on single frames.
    return ModuleVAE(
        module,
        state_dict,
        latent_channels=config.z_dim,
        downscale=config.downscale,
        memory_encode=lambda shape, dtype: memory(1500, shape[2] * shape[3], dtype),
        memory_decode=lambda shape, dtype: memory(2200, shape[2] * shape[3] * config.downscale**2, dtype),
    )


class PixelAutoencoder(nn.Module):
    """Pixel unshuffle as a first-stage model: exact, without weights, latents in [-1, 1]."""

    def __init__(self, downscale: int):
        super().__init__()
        self.codec = PixelUnshuffleVAE(downscale=downscale, scale=1.0)

    def encode(self, image: Tensor) -> Tensor:
        return self.codec.encode(image)

    def encode_moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The latent and the least log-variance: there is nothing to draw."""
        latent = self.encode(image)
        return latent, torch.full_like(latent, LOGVAR_RANGE[0])

    def decode(self, latent: Tensor) -> Tensor:
        return self.codec.decode(latent)


def pixel_vae(downscale: int) -> ModuleVAE:
    """VAE that folds each downscale x downscale block of pixels into channels."""
    module = PixelAutoencoder(downscale)

    def memory(values: int, dtype: torch.dtype) -> float:
        return 4 * values * comfy.model_management.dtype_size(dtype)

    return ModuleVAE(
        module,
        {},
        latent_channels=module.codec.latent_channels,
        downscale=downscale,
        memory_encode=lambda shape, dtype: memory(math.prod(shape[1:]), dtype),
        memory_decode=lambda shape, dtype: memory(math.prod(shape[1:]), dtype),
    )
