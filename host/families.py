"""What kind of model is connected, in words; and refusing the wrong kind before anything is computed."""

from __future__ import annotations

import comfy.model_base

from .types import VAE, Model
from .vosr.model import VOSRModel

FLUX_CHANNELS = {16: "FLUX.1", 32: "FLUX.1 Canny or Depth", 96: "FLUX.1 Fill"}
"""By what the network reads: the noisy latent, and a picture and a mask with it."""

LATENTS = {4: "an SD 1.5, SD 2.1 or SDXL VAE", 12: "pixel unshuffle (VOSR nano's)", 16: "a VAE of 16 channels"}


def flux_channels(model: Model) -> int | None:
    """Latent channels that a FLUX.1 network reads; None for another network."""
    base = model.model
    if not isinstance(base, comfy.model_base.Flux) or isinstance(base, comfy.model_base.Flux2):
        return None
    network = base.diffusion_model
    return network.img_in.weight.shape[1] // network.patch_size**2


def model_in_words(model: Model) -> str:
    """Such as "the VOSR model VOSR_0.5B_os", "FLUX.1 Fill", "a model of the kind SDXL"."""
    base = model.model
    if isinstance(base, VOSRModel):
        return f"the VOSR model {base.info.name}"
    channels = flux_channels(model)
    if channels is not None:
        return FLUX_CHANNELS.get(channels, f"a FLUX.1 of {channels} channels")
    return f"a model of the kind {type(base).__name__}"


def require_flux_dev(node: str, model: Model) -> None:
    """Raises ValueError for a VOSR model, and for FLUX.1 Fill and its like, which read a picture beside the latent.

    Other models pass: what they lack is said where it is needed.
    """
    channels = flux_channels(model)
    if isinstance(model.model, VOSRModel) or channels not in (None, 16):
        raise ValueError(
            f"{node} needs FLUX.1-dev, and {model_in_words(model)} is connected to model. Connect Load Diffusion Model "
            "with flux1-dev.safetensors."
        )


def require_vae_of(node: str, model: Model, vae: VAE) -> None:
    """Raises ValueError for a VAE whose latents are not the model's: the pixel VAE with FLUX."""
    expected, found = model.get_model_object("latent_format").latent_channels, vae.latent_channels
    if expected != found:
        raise ValueError(
            f"{node} works in latents of {expected} channels, and the connected vae makes {found}: it is "
            f"{LATENTS.get(found, 'of another model')}. Connect Load VAE with FLUX's ae.safetensors."
        )
