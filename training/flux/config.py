"""Settings that trainings on FLUX share: where its parts are, and what they compute in."""

from __future__ import annotations

from pathlib import Path

import torch

from ..engine.config import Settings, UserPath
from .files import part_of

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class ModelFiles(Settings):
    """The frozen networks: single files as ComfyUI's users have them, or folders of diffusers and transformers.

    Where `flux` is a whole diffusers folder (FLUX.1-dev, FLUX.1-Fill-dev), the others are taken from it
    unless they are named.
    """

    flux: UserPath
    """FLUX.1: flux1-dev.safetensors (VICR: flux1-fill-dev.safetensors) or the folder."""
    vae: UserPath | None = None
    """ae.safetensors, or a folder."""
    t5: UserPath | None = None
    """t5xxl_fp16.safetensors, or a folder."""
    clip: UserPath | None = None
    """clip_l.safetensors, or a folder."""
    tokenizers: UserPath | None = None
    """ComfyUI's folder, which has them, or a FLUX.1 folder of diffusers."""


def model_file(files: ModelFiles, name: str, part: str) -> Path:
    """A model's file or folder. Raises ValueError when it is neither named nor in the folder of FLUX."""
    named = getattr(files, name)
    if named is None and part_of(files.flux, part) == files.flux:
        raise ValueError(f"models.{name} is needed: {files.flux} is no diffusers folder with a {part} in it")
    return files.flux if named is None else named
