"""The image tokenizer: LlamaGen's VQ autoencoder, 8x down, 16384 codes of 8 channels on the unit sphere.

Parameter names are the released file's (`vq_ds8_c2i.pt`, under the key `model`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..image import from_bytes, truncate_to_bytes
from ..state_dict import require_keys, require_layers, shapes_of, sizes_of
from .vocabulary import IMAGE_TOKENS

CODE_CHANNELS = 8
GROUPS = 32
NEAREST_CHUNK = 1024
"""Pixels compared with the codebook at a time: 64 MB of distances."""

UNUSED = ("quantize.codebook_used",)
"""A training statistic in the released file."""


@dataclass(frozen=True)
class VQConfig:
    """Widths are `base` times each of `multipliers`, finest level first; both halves mirror each other."""

    base: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    res_blocks: int = 2
    latent_channels: int = 256
    codebook_size: int = IMAGE_TOKENS
    code_channels: int = CODE_CHANNELS

    @property
    def downscale(self) -> int:
        return 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> list[int]:
        return [self.base * multiplier for multiplier in self.multipliers]

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> VQConfig:
        """Read the sizes off tensor shapes. Raises KeyError naming the first tensor that is absent."""
        base = shapes["encoder.conv_in.weight"][0]
        levels = require_layers(shapes, "encoder.conv_blocks.")
        codes, channels = shapes["quantize.embedding.weight"]
        return cls(
            base=base,
            multipliers=tuple(
                shapes[f"encoder.conv_blocks.{level}.res.0.conv1.weight"][0] // base for level in range(levels)
            ),
            res_blocks=require_layers(shapes, "encoder.conv_blocks.0.res."),
            latent_channels=shapes["quant_conv.weight"][1],
            codebook_size=codes,
            code_channels=channels,
        )

    def require_codebook(self) -> None:
        """Raises ValueError unless the codebook is the one PURE's tokens name, at 8 pixels a token."""
        if (self.codebook_size, self.code_channels) != (IMAGE_TOKENS, CODE_CHANNELS):
            raise ValueError(
                f"the codebook is {self.codebook_size} x {self.code_channels}, PURE needs {IMAGE_TOKENS} x "
                f"{CODE_CHANNELS}: use LlamaGen's vq_ds8_c2i.pt"
            )
        if self.downscale != 8:
            raise ValueError(
                f"a code of this autoencoder stands for {self.downscale} x {self.downscale} pixels, PURE needs "
                "8 x 8: use LlamaGen's vq_ds8_c2i.pt"
            )


def group_norm(channels: int, dtype, device, operations: Any) -> nn.Module:
    return operations.GroupNorm(GROUPS, channels, eps=1e-6, dtype=dtype, device=device)


class ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.norm1 = group_norm(in_channels, dtype, device, operations)
        self.conv1 = operations.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, **factory)
        self.norm2 = group_norm(out_channels, dtype, device, operations)
        self.conv2 = operations.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, **factory)
        self.nin_shortcut = (
            operations.Conv2d(in_channels, out_channels, kernel_size=1, **factory)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Single-head attention over all pixels."""

    def __init__(self, channels: int, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        conv = {"kernel_size": 1, "dtype": dtype, "device": device}
        self.norm = group_norm(channels, dtype, device, operations)
        self.q = operations.Conv2d(channels, channels, **conv)
        self.k = operations.Conv2d(channels, channels, **conv)
        self.v = operations.Conv2d(channels, channels, **conv)
        self.proj_out = operations.Conv2d(channels, channels, **conv)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (rearrange(layer(normed), "b c h w -> b 1 (h w) c") for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(attended, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    def __init__(self, channels: int, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, kernel_size=3, stride=2, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, kernel_size=3, padding=1, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution; at the coarsest each residual block is followed by attention."""

    def __init__(self, in_channels: int, channels: int, blocks: int, attention: bool, resample: type | None, **factory):
        super().__init__()
        sizes = [in_channels] + [channels] * (blocks - 1)
        self.res = nn.ModuleList([ResidualBlock(size, channels, **factory) for size in sizes])
        self.attn = nn.ModuleList([AttentionBlock(channels, **factory) for _ in range(blocks if attention else 0)])
        if resample is not None:
            name = "downsample" if resample is Downsample else "upsample"
            self.add_module(name, resample(channels, **factory))

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        for name in ("downsample", "upsample"):
            if name in self._modules:
                x = self._modules[name](x)
        return x


def middle(channels: int, **factory) -> nn.ModuleList:
    return nn.ModuleList(
        [
            ResidualBlock(channels, channels, **factory),
            AttentionBlock(channels, **factory),
            ResidualBlock(channels, channels, **factory),
        ]
    )


class Half(nn.Module):
    """What encoder and decoder share: a first and a last convolution around levels and a middle."""

    def __init__(self, first: tuple[int, int], last: tuple[int, int], middle_width: int, dtype, device, operations):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.conv_in = operations.Conv2d(*first, kernel_size=3, padding=1, **factory)
        self.mid = middle(middle_width, **factory, operations=operations)
        self.norm_out = group_norm(last[0], dtype, device, operations)
        self.conv_out = operations.Conv2d(*last, kernel_size=3, padding=1, **factory)

    def finish(self, x: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(x)))


class Encoder(Half):
    def __init__(self, config: VQConfig, dtype=None, device=None, operations: Any = nn):
        widths = config.widths
        super().__init__((3, config.base), (widths[-1], config.latent_channels), widths[-1], dtype, device, operations)
        factory = {"dtype": dtype, "device": device, "operations": operations}
        last = len(widths) - 1
        self.conv_blocks = nn.ModuleList(
            Level(
                widths[max(0, level - 1)] if level else config.base,
                width,
                config.res_blocks,
                attention=level == last,
                resample=None if level == last else Downsample,
                **factory,
            )
            for level, width in enumerate(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for part in (*self.conv_blocks, *self.mid):
            x = part(x)
        return self.finish(x)


class Decoder(Half):
    def __init__(self, config: VQConfig, dtype=None, device=None, operations: Any = nn):
        widths = config.widths[::-1]
        super().__init__((config.latent_channels, widths[0]), (widths[-1], 3), widths[0], dtype, device, operations)
        factory = {"dtype": dtype, "device": device, "operations": operations}
        last = len(widths) - 1
        self.conv_blocks = nn.ModuleList(
            Level(
                widths[max(0, level - 1)],
                width,
                config.res_blocks + 1,
                attention=level == 0,
                resample=None if level == last else Upsample,
                **factory,
            )
            for level, width in enumerate(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for part in (*self.mid, *self.conv_blocks):
            x = part(x)
        return self.finish(x)


class Codebook(nn.Module):
    def __init__(self, config: VQConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        self.embedding = operations.Embedding(config.codebook_size, config.code_channels, dtype=dtype, device=device)

    def rows(self, like: Tensor) -> Tensor:
        """The unit-length code vectors `[codes, channels]`."""
        return F.normalize(self.embedding.weight.to(like), dim=-1)

    def nearest(self, latent: Tensor) -> Tensor:
        """Codes `[B, h, w]` of latents `[B, C, h, w]`: the least squared distance between unit vectors."""
        batch, _, height, width = latent.shape
        vectors = F.normalize(rearrange(latent, "b c h w -> (b h w) c"), dim=-1)
        rows = self.rows(vectors)
        lengths = rows.square().sum(dim=1)
        codes = [
            (part.square().sum(dim=1, keepdim=True) + lengths - 2 * part @ rows.T).argmin(dim=1)
            for part in vectors.split(NEAREST_CHUNK)
        ]
        return rearrange(torch.cat(codes), "(b h w) -> b h w", b=batch, h=height, w=width)

    def look_up(self, codes: Tensor, like: Tensor) -> Tensor:
        """Unit vectors `[B, C, h, w]` of codes `[B, h, w]`."""
        return rearrange(self.rows(like)[codes], "b h w c -> b c h w")


class VQGAN(nn.Module):
    """Pixels to codes and back. Pixels are in -1..1; sides must be multiples of 8."""

    def __init__(self, config: VQConfig, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        layers = {**factory, "operations": operations}
        self.config = config
        self.encoder = Encoder(config, **layers)
        self.quant_conv = operations.Conv2d(config.latent_channels, config.code_channels, kernel_size=1, **factory)
        self.quantize = Codebook(config, **layers)
        self.post_quant_conv = operations.Conv2d(config.code_channels, config.latent_channels, kernel_size=1, **factory)
        self.decoder = Decoder(config, **layers)

    def encode(self, pixels: Tensor) -> Tensor:
        """Codes `[B, H/8, W/8]` of pixels `[B, 3, H, W]`. Raises ValueError for a side that 8 does not divide."""
        height, width = pixels.shape[-2:]
        scale = self.config.downscale
        if height % scale or width % scale:
            raise ValueError(
                f"an image of {width} x {height} cannot be encoded: both sides must be multiples of {scale}"
            )
        return self.quantize.nearest(self.quant_conv(self.encoder(pixels)))

    def decode(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Pixels `[B, 3, 8h, 8w]`, not clamped, of codes `[B, h, w]`."""
        like = torch.empty(0, dtype=dtype or self.quantize.embedding.weight.dtype, device=codes.device)
        return self.decoder(self.post_quant_conv(self.quantize.look_up(codes, like)))


def to_pixels(images: Tensor) -> Tensor:
    """8-bit RGB `[B, H, W, 3]` -> float32 `[B, 3, H, W]` in -1..1."""
    return rearrange((images.double() / 255 * 2 - 1).float(), "b h w c -> b c h w")


def to_image(pixels: Tensor) -> Tensor:
    """Decoded `[B, 3, H, W]` in -1..1 -> float `[B, H, W, 3]` in 0..1, clamped and truncated to 8-bit levels."""
    return from_bytes(truncate_to_bytes(rearrange((pixels.float().clamp(-1, 1) + 1) / 2, "b c h w -> b h w c")))


def check_released(name: str, state_dict: Mapping[str, Any]) -> tuple[VQConfig, dict[str, Tensor]]:
    """Configuration and tensors of a released autoencoder, with the unused statistic left out.

    Takes the content of the file `name` or what it has under `model`. Raises ValueError naming the file and what does
    not fit.
    """
    tensors = state_dict.get("model", state_dict)
    if not isinstance(tensors, Mapping):
        raise ValueError(f"'model' in {name} is a {type(tensors).__name__}, not a table of tensors.")
    shapes = shapes_of(tensors)
    with sizes_of("LlamaGen VQ autoencoder", name, tensors):
        config = VQConfig.from_shapes(shapes)
    try:
        config.require_codebook()
    except ValueError as error:
        raise ValueError(f"{name}: {error}.") from error
    with sizes_of("LlamaGen VQ autoencoder", name, tensors):
        wanted = VQGAN(config, device="meta").state_dict()
    require_keys("LlamaGen VQ autoencoder", name, wanted, tensors, optional=UNUSED)
    return config, {key: tensors[key] for key in wanted}
