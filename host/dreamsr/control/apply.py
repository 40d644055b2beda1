"""Applying an MM-ControlNet to a MODEL and its conditionings, once everything is known to fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_base
from torch import Tensor

from ....models.dreamsr.mm_controlnet import PATCH
from ...families import model_in_words, require_flux_dev
from ...types import Conditioning, Entry, Model
from .conditioning import ApplyOptions, ControlRun, LocalPrompt, with_control
from .injection import add_control
from .loader import MMControl


def apply_mm_control(
    model: Model,
    control: MMControl,
    positive: Conditioning,
    negative: Conditioning | None,
    latent: Mapping[str, Any],
    local: Conditioning | None,
    options: ApplyOptions,
) -> tuple[Model, Conditioning, Conditioning]:
    """The MODEL with one more MM-ControlNet, and the conditionings that carry its latent and local prompt.

    latent: the host's LATENT of the LQ or degradation-free image, at the size that will be sampled. local: the local
    prompt of positive's entries, None for the prompt each has already. negative, if any, is controlled with its own
    prompt as the local one. At strength 0 everything is returned as it came.
    Raises ValueError naming what does not fit.
    """
    run = ControlRun(control, dit_blocks(model, control), options)
    samples = model_space(model, control, latent)
    if local is not None and len(local) != 1:
        raise ValueError(
            f"local_positive holds {len(local)} prompts, Apply MM-ControlNet takes one. Prompts of tiles go to the "
            "tiled sampler."
        )
    source = "positive" if local is None else "local_positive"
    prompts = [local_prompt(control, local[0] if local else entry, source) for entry in positive]
    against = [local_prompt(control, entry, "negative") for entry in negative or []]
    if options.strength == 0.0:
        return model, positive, negative or []

    def controlled(entries: Conditioning, prompts: list[LocalPrompt]) -> Conditioning:
        return [with_control(entry, run, samples, prompt) for entry, prompt in zip(entries, prompts, strict=True)]

    return add_control(model, control), controlled(positive, prompts), controlled(negative or [], against)


def dit_blocks(model: Model, control: MMControl) -> tuple[int, ...]:
    """DiT block of each control block. Raises ValueError when the MODEL is not one this control was made for."""
    base, config = model.model, control.config
    require_flux_dev("Apply MM-ControlNet", model)
    if not isinstance(base, comfy.model_base.Flux) or base.diffusion_model.patch_size != PATCH:
        raise ValueError(
            f"MM-ControlNet steers FLUX.1 models; {model_in_words(model)} is connected to model. Load FLUX.1-dev with "
            "Load Diffusion Model."
        )
    network = base.diffusion_model
    if network.hidden_size != config.hidden_size:
        raise ValueError(
            f"{control.name} expects hidden {config.hidden_size}, this model has {network.hidden_size}. "
            "Use the MM-ControlNet that was made for this model."
        )
    try:
        return control.injection.blocks(config.layers, len(network.double_blocks))
    except ValueError as error:
        raise ValueError(f"{control.name} does not fit this MODEL: {error}.") from error


def model_space(model: Model, control: MMControl, latent: Mapping[str, Any]) -> Tensor:
    """The samples of a LATENT as the model sees latents. Raises ValueError when they are not FLUX's."""
    samples, channels = latent["samples"], control.config.latent_channels
    if samples.ndim != 4 or samples.shape[1] != channels:
        raise ValueError(
            f"Apply MM-ControlNet got a latent of shape {list(samples.shape)}, but {control.name} reads {channels} "
            "channels (batch, channels, height, width). Encode the image with FLUX's VAE (ae.safetensors)."
        )
    return model.get_model_object("latent_format").process_in(samples)


def local_prompt(control: MMControl, entry: Entry, source: str) -> LocalPrompt:
    """The prompt of a CONDITIONING entry. Raises ValueError when its text is of another kind than the control's."""
    prompt, config = LocalPrompt.from_entry(entry, control.config.pooled_width), control.config
    if prompt.tokens.shape[-1] != config.text_width or prompt.pooled.shape[-1] < config.pooled_width:
        raise ValueError(
            f"{source} has text tokens {prompt.tokens.shape[-1]} wide and pooled text {prompt.pooled.shape[-1]} wide; "
            f"{control.name} reads {config.text_width} and {config.pooled_width}. Encode it with FLUX's text encoders "
            "(DualCLIPLoader, type flux)."
        )
    return prompt
