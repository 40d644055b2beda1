"""The Qwen-Image autoencoder for single images: the Wan video autoencoder without its time axis.

Parameter names are the released file's (`Qwen-Image-vae-2d`). Latents are unnormalised; a diffusion model uses
(latent - mean) / std per channel, with LATENTS_MEAN and LATENTS_STD.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..state_dict import require_layers

LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip

LOGVAR_RANGE = (-30.0, 20.0)

PixelAttention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Single-head attention over pixels: q, k, v `[B, C, H, W]` -> `[B, C, H, W]`, scale 1/sqrt(C)."""


def pixel_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    height = q.shape[-2]
    q, k, v = (rearrange(x, "b c h w -> b 1 (h w) c") for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b 1 (h w) c -> b c h w", h=height)


@dataclass(frozen=True)
class QwenVAEConfig:
    """Widths are `base_dim` times each of `dim_mult`, one per resolution; both halves mirror each other."""

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2

    @property
    def widths(self) -> list[int]:
        return [self.base_dim * mult for mult in self.dim_mult]

    @property
    def downscale(self) -> int:
        return 2 ** (len(self.dim_mult) - 1)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> QwenVAEConfig:
        """Read the sizes off tensor shapes. Raises KeyError naming the first tensor that is absent."""
        base = shapes["encoder.conv_in.weight"][0]
        stages: list[list[int]] = [[]]
        for block in range(require_layers(shapes, "encoder.down_blocks.")):
            if f"encoder.down_blocks.{block}.resample.1.weight" in shapes:
                stages.append([])
            else:
                stages[-1].append(shapes[f"encoder.down_blocks.{block}.conv1.weight"][0])
        return cls(
            base_dim=base,
            z_dim=shapes["post_quant_conv.weight"][0],
            dim_mult=tuple(widths[-1] // base for widths in stages if widths),
            num_res_blocks=len(stages[0]),
        )


class ChannelNorm(nn.Module):
    """Scales each pixel's channel vector to length sqrt(C), then by a gain per channel."""

    def __init__(self, channels: int, dtype=None, device=None):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * self.gamma.to(x)


class ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        conv = {"kernel_size": 3, "padding": 1, "dtype": dtype, "device": device}
        self.norm1 = ChannelNorm(in_channels, dtype, device)
        self.conv1 = operations.Conv2d(in_channels, out_channels, **conv)
        self.norm2 = ChannelNorm(out_channels, dtype, device)
        self.conv2 = operations.Conv2d(out_channels, out_channels, **conv)
        self.conv_shortcut = (
            operations.Conv2d(in_channels, out_channels, kernel_size=1, dtype=dtype, device=device)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.conv_shortcut(x) + h


class AttentionBlock(nn.Module):
    def __init__(self, channels: int, attention: PixelAttention, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        conv = {"kernel_size": 1, "dtype": dtype, "device": device}
        self.norm = ChannelNorm(channels, dtype, device)
        self.to_qkv = operations.Conv2d(channels, 3 * channels, **conv)
        self.proj = operations.Conv2d(channels, channels, **conv)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x)).chunk(3, dim=1)
        return x + self.proj(self.attention(q, k, v))


class MidBlock(nn.Module):
    def __init__(self, channels: int, attention: PixelAttention, **layers: Any):
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(channels, attention, **layers)])
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels, **layers) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x))
        return self.resnets[1](x)


class Downsample(nn.Module):
    """Halves both sides: one zero row below and one zero column right, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        conv = operations.Conv2d(channels, channels, kernel_size=3, stride=2, dtype=dtype, device=device)
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class Upsample(nn.Module):
    """Doubles both sides by repetition and halves the channels with a 3x3 convolution."""

    def __init__(self, channels: int, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        conv = operations.Conv2d(channels, channels // 2, kernel_size=3, padding=1, dtype=dtype, device=device)
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest-exact"), conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class Encoder(nn.Module):
    """Image `[B, 3, H, W]` -> `[B, 2 z, H / f, W / f]`."""

    def __init__(self, config: QwenVAEConfig, attention: PixelAttention, **layers: Any):
        super().__init__()
        conv = {"kernel_size": 3, "padding": 1, "dtype": layers["dtype"], "device": layers["device"]}
        operations = layers["operations"]
        widths = config.widths
        self.conv_in = operations.Conv2d(3, config.base_dim, **conv)
        blocks: list[nn.Module] = []
        width = config.base_dim
        for stage, out_width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                blocks.append(ResidualBlock(width, out_width, **layers))
                width = out_width
            if stage < len(widths) - 1:
                blocks.append(Downsample(width, **layers))
        self.down_blocks = nn.ModuleList(blocks)
        self.mid_block = MidBlock(width, attention, **layers)
        self.norm_out = ChannelNorm(width, layers["dtype"], layers["device"])
        self.conv_out = operations.Conv2d(width, 2 * config.z_dim, **conv)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class UpBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, count: int, upsample: bool, **layers: Any):
        super().__init__()
        widths = [in_channels] + [out_channels] * (count - 1)
        self.resnets = nn.ModuleList([ResidualBlock(width, out_channels, **layers) for width in widths])
        self.upsamplers = nn.ModuleList([Upsample(out_channels, **layers)] if upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for block in [*self.resnets, *self.upsamplers]:
            x = block(x)
        return x


class Decoder(nn.Module):
    """Latent `[B, z, h, w]` -> image `[B, 3, f h, f w]`, unclamped."""

    def __init__(self, config: QwenVAEConfig, attention: PixelAttention, **layers: Any):
        super().__init__()
        conv = {"kernel_size": 3, "padding": 1, "dtype": layers["dtype"], "device": layers["device"]}
        operations = layers["operations"]
        widths = config.widths[::-1]
        self.conv_in = operations.Conv2d(config.z_dim, widths[0], **conv)
        self.mid_block = MidBlock(widths[0], attention, **layers)
        blocks: list[nn.Module] = []
        width = widths[0]
        for stage, out_width in enumerate(widths):
            upsample = stage < len(widths) - 1
            blocks.append(UpBlock(width, out_width, config.num_res_blocks + 1, upsample, **layers))
            width = out_width // 2 if upsample else out_width
        self.up_blocks = nn.ModuleList(blocks)
        self.norm_out = ChannelNorm(width, layers["dtype"], layers["device"])
        self.conv_out = operations.Conv2d(width, 3, **conv)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class QwenImageVAE(nn.Module):
    """Autoencoder of images in [-1, 1]; f = 8 and z = 16 as released."""

    def __init__(
        self,
        config: QwenVAEConfig,
        dtype=None,
        device=None,
        operations: Any = nn,
        attention: PixelAttention = pixel_attention,
    ):
        super().__init__()
        layers = {"dtype": dtype, "device": device, "operations": operations}
        conv = {"kernel_size": 1, "dtype": dtype, "device": device}
        self.config = config
        self.encoder = Encoder(config, attention, **layers)
        self.quant_conv = operations.Conv2d(2 * config.z_dim, 2 * config.z_dim, **conv)
        self.post_quant_conv = operations.Conv2d(config.z_dim, config.z_dim, **conv)
        self.decoder = Decoder(config, attention, **layers)

    def encode_moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance `[B, z, h, w]` of the posterior of images `[B, 3, H, W]` in [-1, 1]."""
        mean, logvar = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def encode(self, image: Tensor) -> Tensor:
        """The posterior mean."""
        return self.encode_moments(image)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """Images `[B, 3, H, W]`, about [-1, 1] but unclamped, of latents `[B, z, h, w]`."""
        return self.decoder(self.post_quant_conv(latent))
