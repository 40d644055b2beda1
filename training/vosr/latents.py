"""The latent spaces VOSR trains in: pixels folded into channels, the SD 2.1 VAE, the Qwen-Image VAE.

Images are `[B, 3, H, W]` in [-1, 1], latents `[B, C, H / f, W / f]` normalised as the network takes them. Autoencoders
stay in float32, as in the reference, and are not trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ...models.state_dict import (
    count_layers,
    describe_state_dict,
    require_keys,
    require_layers,
    require_tensors,
    shapes_of,
    sizes_of,
)
from ...models.vosr.config import strip_wrapper_prefix
from ...models.vosr.pixel_vae import PixelUnshuffleVAE
from ...models.vosr.qwen_vae import LATENTS_MEAN, LATENTS_STD, LOGVAR_RANGE, QwenImageVAE, QwenVAEConfig
from ...models.vosr.qwen_vae_video import from_video, is_video
from ...models.vosr.vae_files import check_statistics, is_kl, is_qwen, weights_in
from .tensor_files import read_tensors

SD_SCALE = 0.18215
"""Of SD 2.1 latents, which have no shift."""

KL_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What diffusers once called the layers of its attention."""


class Posterior(NamedTuple):
    """A Gaussian over latents, `[B, C, h, w]` each."""

    mean: Tensor
    logvar: Tensor


class LatentSpace(Protocol):
    """Where the network works."""

    channels: int
    downscale: int

    def posterior(self, image: Tensor) -> Posterior:
        """What images are encoded to, not normalised."""
        ...

    def latent(self, posterior: Posterior, noise: Tensor | None = None) -> Tensor:
        """Normalised latents: a sample made with standard normal noise, or without it the posterior's mean."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Images, about [-1, 1] but unclamped."""
        ...


class PixelLatents:
    """Pixel unshuffle, which is exact: there is nothing to draw."""

    def __init__(self, downscale: int, scale: float):
        self.vae = PixelUnshuffleVAE(downscale, scale)
        self.channels, self.downscale = self.vae.latent_channels, downscale

    def posterior(self, image: Tensor) -> Posterior:
        latent = self.vae.encode(image)
        return Posterior(latent, torch.full_like(latent, LOGVAR_RANGE[0]))

    def latent(self, posterior: Posterior, noise: Tensor | None = None) -> Tensor:
        return posterior.mean

    def decode(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent)


class VAELatents:
    """An autoencoder with a Gaussian posterior: latents are (sample - mean) / std per channel.

    moments: images -> posterior mean and log-variance. decoder: the inverse.
    """

    def __init__(
        self,
        vae: nn.Module,
        moments: Callable[[Tensor], tuple[Tensor, Tensor]],
        decoder: Callable[[Tensor], Tensor],
        downscale: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ):
        self.vae = vae
        self.moments, self.decoder = moments, decoder
        self.channels, self.downscale = len(mean), downscale
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))

    def posterior(self, image: Tensor) -> Posterior:
        with torch.autocast(image.device.type, enabled=False):
            mean, logvar = self.moments(image.float())
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    def latent(self, posterior: Posterior, noise: Tensor | None = None) -> Tensor:
        mean, logvar = posterior
        latent = mean if noise is None else mean + (0.5 * logvar).exp() * noise
        return (latent - self.mean.to(latent)) / self.std.to(latent)

    def decode(self, latent: Tensor) -> Tensor:
        with torch.autocast(latent.device.type, enabled=False):
            return self.decoder(latent.float() * self.std.to(latent) + self.mean.to(latent))


def make_latents(args: Mapping[str, Any], vae: Path | None, device: torch.device) -> LatentSpace:
    """The latent space that args ask for. vae: the file or diffusers folder of the SD 2.1 or Qwen-Image VAE.

    Raises ValueError when a VAE is needed and not named, or the file is another one; FileNotFoundError without file.
    """
    kind = args["ae_type"]
    if kind == "pixel_unshuffle":
        if vae is not None:
            raise ValueError("the model works on pixels folded into channels and takes no VAE: leave out `vae`")
        return PixelLatents(args["ae_downscale"], args["ae_scale"])
    if vae is None:
        published = {"sd2": "the vae folder of stable-diffusion-2-1-base", "qwen": "Qwen-Image-vae-2d"}.get(kind)
        raise ValueError(f"a model with ae_type '{kind}' needs its VAE: set vae to {published}")
    path = weights_in(vae)
    tensors = strip_wrapper_prefix(read_tensors(path, "meta" if device.type == "meta" else "cpu"))
    if is_video(tensors):
        with sizes_of("Qwen-Image VAE", path.name, tensors):
            tensors = from_video(tensors)
    found = "qwen" if is_qwen(tensors) else "sd2" if is_kl(tensors) else None
    if found != kind:
        raise ValueError(f"vae is {path}, which looks like {describe_state_dict(tensors)}; the model needs '{kind}'")
    return (qwen_latents if kind == "qwen" else sd_latents)(path, tensors, device)


def qwen_latents(path: Path, tensors: Mapping[str, Tensor], device: torch.device) -> VAELatents:
    """Latents of the Qwen-Image 2D VAE. Raises ValueError for tensors that are not exactly its."""
    stated = path.parent / "config.json"
    if stated.is_file():
        check_statistics(json.loads(stated.read_text(encoding="utf-8")), stated)
    with sizes_of("Qwen-Image VAE", path.name, tensors):
        config = QwenVAEConfig.from_shapes(shapes_of(tensors))
        vae = QwenImageVAE(config, device="meta")
    load_frozen(vae, "Qwen-Image VAE", path.name, tensors, device)
    return VAELatents(vae, vae.encode_moments, vae.decode, config.downscale, LATENTS_MEAN, LATENTS_STD)


def sd_latents(path: Path, tensors: Mapping[str, Tensor], device: torch.device) -> VAELatents:
    """Latents of the SD 2.1 VAE, in diffusers or latent-diffusion naming.

    Raises ValueError for tensors that are not exactly its, and ModuleNotFoundError without diffusers.
    """
    try:
        from diffusers import AutoencoderKL
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    except ImportError as error:
        raise ModuleNotFoundError("training with a VAE needs diffusers: pip install 'realisr[train]'") from error
    what = "SD 2.1 VAE"
    require_tensors(what, path.name, tensors)
    with sizes_of(what, path.name, tensors), torch.device("meta"):
        settings = kl_settings(tensors)
        vae: Any = AutoencoderKL(**settings)
    if any(key.startswith("encoder.down.") for key in tensors):
        renamed = convert_ldm_vae_checkpoint(dict(tensors), settings)
        if len(renamed) != len(tensors):
            odd = [key for key in tensors if not key.startswith(KL_PARTS)] or ["other blocks than its"]
            raise ValueError(f"{path.name} does not fit a {what}: unexpected {odd[0]}")
        tensors = renamed
    load_frozen(vae, what, path.name, {current_name(key): value for key, value in tensors.items()}, device)

    def moments(image: Tensor) -> tuple[Tensor, Tensor]:
        posterior = vae.encode(image).latent_dist
        return posterior.mean, posterior.logvar

    channels, stages = settings["latent_channels"], len(settings["block_out_channels"])
    return VAELatents(
        vae,
        moments,
        lambda latent: vae.decode(latent).sample,
        2 ** (stages - 1),
        (0.0,) * channels,
        (1 / SD_SCALE,) * channels,
    )


def kl_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' settings for a KL autoencoder with tensors of these shapes, in either naming."""
    shapes = shapes_of(tensors)
    old = any(key.startswith("encoder.down.") for key in shapes)
    stages, first, layers = (
        ("encoder.down.", "encoder.down.{}.block.0.conv1.weight", "encoder.down.0.block.")
        if old
        else ("encoder.down_blocks.", "encoder.down_blocks.{}.resnets.0.conv1.weight", "encoder.down_blocks.0.resnets.")
    )
    widths = [shapes[first.format(stage)][0] for stage in range(require_layers(shapes, stages))]
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": count_layers(shapes, layers),
        "latent_channels": shapes["quant_conv.weight"][0] // 2,
    }


def current_name(name: str) -> str:
    """A tensor's name as diffusers has it now."""
    head, _, part = name.partition(".attentions.0.")
    layer, _, leaf = part.rpartition(".")
    return f"{head}.attentions.0.{OLD_ATTENTION[layer]}.{leaf}" if layer in OLD_ATTENTION else name


def load_frozen(module: nn.Module, what: str, source: str, tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Fill a module made on the meta device: float32, on the device, never trained.

    Raises ValueError naming the first tensors that do not fit.
    """
    require_keys(what, source, module.state_dict(), tensors)
    module.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
    module.to(device).eval().requires_grad_(False)
