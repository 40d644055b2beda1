"""What a file of VOSR's autoencoders is, before a network is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .qwen_vae import LATENTS_MEAN, LATENTS_STD

FOLDER_WEIGHTS = "diffusion_pytorch_model.safetensors"

QWEN_MARK = "encoder.down_blocks.0.norm1.gamma"
KL_MARKS = ("encoder.down.0.block.0.", "encoder.down_blocks.0.resnets.0.")


def weights_in(path: Path) -> Path:
    """The weight file of a diffusers folder, of its `vae` sub-folder, or the file itself."""
    for place in (path / FOLDER_WEIGHTS, path / "vae" / FOLDER_WEIGHTS):
        if place.is_file():
            return place
    return path


def is_qwen(state_dict: Mapping[str, Any]) -> bool:
    """Whether these are the Qwen-Image 2D autoencoder's tensors."""
    return QWEN_MARK in state_dict


def is_kl(state_dict: Mapping[str, Any]) -> bool:
    """Whether these are a KL autoencoder's tensors, in latent-diffusion or diffusers naming."""
    return any(key.startswith(KL_MARKS) for key in state_dict)


def check_statistics(stated: Mapping[str, Any], source: Path) -> None:
    """Raises ValueError when a Qwen-Image VAE's config.json states other latent statistics than the published ones."""
    for key, standard in (("latents_mean", LATENTS_MEAN), ("latents_std", LATENTS_STD)):
        values = stated.get(key)
        if values is None:
            continue
        numbers = isinstance(values, list) and all(isinstance(value, int | float) for value in values)
        alike = numbers and len(values) == len(standard)
        if not alike or any(abs(a - b) > 1e-4 for a, b in zip(values, standard, strict=True)):
            raise ValueError(
                f"{source} states {key} {values}, the Qwen-Image VAE of VOSR has {list(standard)}. Latents would be "
                "normalised wrongly: use the VAE published with the model."
            )
