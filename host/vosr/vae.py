"""VOSR's autoencoders: which files the loader offers, what a file is, and the posterior behind an encoded image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import comfy.ldm.wan.vae
import torch
from comfy.ldm.models.autoencoder import AutoencodingEngine, AutoencodingEngineLegacy, DiagonalGaussianRegularizer
from torch import Tensor, nn

from ...models.state_dict import describe_state_dict, require_tensors, shapes_of, sizes_of
from ...models.vosr.config import strip_wrapper_prefix
from ...models.vosr.qwen_vae import LOGVAR_RANGE
from ...models.vosr.qwen_vae_video import from_video, is_video
from ...models.vosr.vae_files import check_statistics, is_kl, is_qwen, weights_in
from ..files import Reader, load_state_dict_file
from ..images import run_encode
from ..model_catalogue import chosen_file
from ..model_folders import model_files
from ..types import VAE
from .autoencoders import check_decoder, kl_vae, latent_diffusion_names, pixel_vae, qwen_vae, stage_widths
from .files import read_args

PIXEL_UNSHUFFLE = "pixel unshuffle x2 (no file)"
PIXEL_DOWNSCALE = 2
NO_DECODER = "none (the VAE's own)"


def vae_choices() -> list[str]:
    """What the loader offers as autoencoder: pixel unshuffle, then the files in models/vae."""
    return [PIXEL_UNSHUFFLE, *model_files("vae")]


def decoder_choices() -> list[str]:
    """What the loader offers in place of the autoencoder's own decoder."""
    return [NO_DECODER, *model_files("vae")]


def find_vae(name: str) -> Path | None:
    """The file of a choice of autoencoder, None for the one without. Raises FileNotFoundError saying what to fetch."""
    return None if name == PIXEL_UNSHUFFLE else chosen_file("vae", name)


def find_decoder(name: str) -> Path | None:
    """The same for a choice of decoder."""
    return None if name == NO_DECODER else chosen_file("vae", name)


def load_vosr_vae(vae_name: str, decoder_name: str = NO_DECODER, read: Reader = load_state_dict_file) -> VAE:
    """The VAE behind two loader choices. read: opens the files.

    Raises ValueError for files that are no such parts, or do not go together.
    """
    encoder, decoder = find_vae(vae_name), find_decoder(decoder_name)
    if encoder is not None:
        return load_vae_files(encoder, decoder, read)
    if decoder is not None:
        raise ValueError(
            f"Pixel unshuffle needs no decoder, but {decoder_name} is chosen as one. Set the decoder to "
            f"'{NO_DECODER}', or choose the SD 2.1 VAE the light decoder goes with."
        )
    vae = pixel_vae(PIXEL_DOWNSCALE)
    vae.patcher.cached_patcher_init = (_pixel_patcher, ())
    return vae


def load_vae_files(
    vae_path: str | Path, decoder_path: str | Path | None = None, read: Reader = load_state_dict_file
) -> VAE:
    """VAE from a file (or a diffusers folder) of an SD 2.1 or Qwen-Image autoencoder.

    decoder_path: VOSR's light decoder, which replaces the SD 2.1 decoder.

    Raises ValueError naming what a wrong file looks like, its first missing or unexpected tensors, or a Qwen-Image
    config.json whose latent statistics are not the published ones.
    """
    path = weights_in(Path(vae_path))
    state_dict = strip_wrapper_prefix(read(path)[0])
    if not is_light_decoder(state_dict):
        require_tensors("VAE", path.name, state_dict)
    if is_video(state_dict):
        with sizes_of("Qwen-Image VAE", path.name, state_dict):
            state_dict = from_video(state_dict)
    if is_qwen(state_dict):
        config = path.parent / "config.json"
        if config.is_file():
            check_statistics(read_args(config), config)
        vae: VAE = qwen_vae(path.name, without_decoder_choice(path, decoder_path, state_dict))
    elif is_kl(state_dict):
        vae = kl_vae(path.name, kl_tensors(path.name, state_dict, read_light_decoder(decoder_path, read)))
    else:
        raise ValueError(f"{path.name} is not an SD 2.1 or Qwen-Image VAE. {wrong_file_hint(state_dict)}")
    vae.patcher.cached_patcher_init = (_file_patcher, (vae_path, decoder_path))
    return vae


def _file_patcher(vae_path, decoder_path, disable_dynamic: bool = False):
    return load_vae_files(vae_path, decoder_path).patcher


def _pixel_patcher(disable_dynamic: bool = False):
    return pixel_vae(PIXEL_DOWNSCALE).patcher


def wrong_file_hint(state_dict: Mapping[str, Any]) -> str:
    if is_light_decoder(state_dict):
        return "It is VOSR's light decoder: choose it as decoder, and the SD 2.1 VAE as VAE."
    return (
        f"It looks like {describe_state_dict(state_dict)}. VOSR 0.5B models need the VAE of "
        "stable-diffusion-2-1-base, 1.4B models and VOSR 2.0 the one of Qwen-Image-vae-2d."
    )


def without_decoder_choice(path: Path, decoder_path, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    if decoder_path is not None:
        raise ValueError(
            f"{path.name} is a Qwen-Image VAE, which decodes by itself; {Path(decoder_path).name} is for SD 2.1 "
            f"latents. Set the decoder to '{NO_DECODER}'."
        )
    return state_dict


def kl_tensors(
    source: str, state_dict: Mapping[str, Tensor], decoder: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Tensors of a whole KL autoencoder in latent-diffusion naming, with the light decoder in place if one is given."""
    with sizes_of("SD 2.1 VAE", source, state_dict):
        own = latent_diffusion_names(state_dict)
    if decoder is None:
        if not any(key.startswith("decoder.") for key in own):
            raise ValueError(f"{source} holds an encoder only. Choose sd21_lwdecoder.pth as decoder.")
        return own
    encoder = {key: value for key, value in own.items() if key.startswith(("encoder.", "quant_conv."))}
    # The light decoder reads latents as they are; the host's module has a 1x1 convolution before its decoder.
    channels = decoder["decoder.conv_in.weight"].shape[1]
    identity = {
        "post_quant_conv.weight": torch.eye(channels).view(channels, channels, 1, 1),
        "post_quant_conv.bias": torch.zeros(channels),
    }
    return {**encoder, **decoder, **identity}


def read_light_decoder(path: str | Path | None, read: Reader = load_state_dict_file) -> dict[str, Tensor] | None:
    return None if path is None else light_decoder_tensors(Path(path).name, read(Path(path))[0])


def is_light_decoder(state_dict: Mapping[str, Any]) -> bool:
    tensors = state_dict.get("model_state_dict", state_dict)
    return (
        isinstance(tensors, Mapping) and "conv_in.weight" in tensors and "up_blocks.0.resnets.0.norm1.weight" in tensors
    )


def light_decoder_tensors(source: str, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of a light decoder file's content as `decoder.*` in latent-diffusion naming.

    Raises ValueError for another file, an incomplete one, or one whose own config disagrees with its tensors.
    """
    what = "VOSR light decoder"
    if not is_light_decoder(content):
        raise ValueError(
            f"{source} is not VOSR's light decoder (sd21_lwdecoder.pth). It looks like {describe_state_dict(content)}."
        )
    tensors = strip_wrapper_prefix(content.get("model_state_dict", content))
    require_tensors(what, source, tensors)
    with sizes_of(what, source, tensors):
        decoder = latent_diffusion_names({f"decoder.{key}": value for key, value in tensors.items()})
    check_decoder(what, source, decoder)
    stated = content.get("config")
    widths = stated.get("block_out_channels") if isinstance(stated, Mapping) else None
    if widths is not None:
        stages = stage_widths(shapes_of(decoder), "decoder.up")
        if stages != widths:
            raise ValueError(
                f"{source} says its widths are {widths}, its tensors have {stages}: the file is damaged. "
                "Download it again."
            )
    return decoder


def posterior_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Function from images `[B, 3, H, W]` in [-1, 1] to mean and log-variance, `[B, 2C, h, w]`.

    Of a video autoencoder, from and to single frames: `[B, 3, 1, H, W]` to `[B, 2C, 1, h, w]`. Raises ValueError for an
    autoencoder without a Gaussian posterior.
    """
    if hasattr(model, "encode_moments"):
        return lambda x: torch.cat(model.encode_moments(x), dim=1)
    if isinstance(model, comfy.ldm.wan.vae.WanVAE):
        return lambda x: model.conv1(model.encoder(x))
    gaussian = isinstance(getattr(model, "regularization", None), DiagonalGaussianRegularizer)
    if isinstance(model, AutoencodingEngineLegacy) and gaussian and model.bn is None:
        return lambda x: model.quant_conv(model.encoder(x))
    if isinstance(model, AutoencodingEngine) and gaussian and not isinstance(model, AutoencodingEngineLegacy):
        return lambda x: model.encode(x, unregularized=True)[0]
    raise ValueError(
        f"This VAE ({type(model).__name__}) encodes an image to one latent and has no distribution to sample from. "
        "Set the posterior to mean, or use Load VOSR VAE."
    )


class MomentsModule(nn.Module):
    """Stands in for an autoencoder in the host's encoding: its latent is the posterior's mean and log-variance."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.encode = posterior_of(model)


def encode_moments(vae: VAE, images: Tensor, vae_tile: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and log-variance `[B, C, h, w]` of the posterior of images `[B, H, W, 3]` in 0..1, not normalised.

    vae_tile: side in pixels of the tiles the VAE works in, a multiple of 64; 0 to decide by free memory. All is the
    host's own encoding, whose tiles are averaged over three passes. Raises ValueError when the VAE has no posterior,
    or the images are smaller than one latent cell.
    """
    vae.throw_exception_if_invalid()
    cell = vae.spacial_compression_encode()
    if min(images.shape[1:3]) < cell:
        raise ValueError(
            f"The image is {images.shape[2]}x{images.shape[1]}, smaller than one latent cell of this VAE ({cell} "
            "pixels). Enlarge or pad it first."
        )
    of_moments = copy.copy(vae)
    of_moments.first_stage_model = MomentsModule(vae.first_stage_model)
    of_moments.latent_channels = 2 * vae.latent_channels
    moments = run_encode(of_moments, images, vae_tile)
    if moments.ndim == 5:
        moments = moments[:, :, 0]
    mean, logvar = moments.chunk(2, dim=1)
    return mean, logvar.clamp(*LOGVAR_RANGE)
