"""VOSR's released files, made small: every name and layout a user has after downloading, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .autoencoders import light_decoder, qwen_vae, sd21_vae
from .checkpoints import dinov2, save_vosr_folder, vosr_config

SMALL = {"latent_channels": 4, "context_width": 24}
LARGE = {"latent_channels": 16, "context_width": 32}
MODELS: dict[str, dict[str, Any]] = {
    "VOSR_0.5B_ms": SMALL,
    "VOSR_0.5B_os": {**SMALL, "has_end_time": True},
    "VOSR_1.4B_ms": LARGE,
    "VOSR_1.4B_os": {**LARGE, "has_end_time": True},
}
TRAIN_GRID = 32
"""As released, so that tiles have their real size of 512 pixels."""


def save_released_files(models: Path) -> None:
    """Write all of them into a ComfyUI's models folder."""
    for seed, (name, sizes) in enumerate(MODELS.items()):
        save_vosr_folder(models / "diffusion_models" / name, vosr_config(train_grid=TRAIN_GRID, **sizes), seed)
    save(models / "vae/stable-diffusion-2-1-base/vae/diffusion_pytorch_model.safetensors", sd21_vae())
    save(models / "vae/Qwen-Image-vae-2d/diffusion_pytorch_model.safetensors", qwen_vae())
    save(models / "vae/sd21_lwdecoder.pth", light_decoder())
    save(models / "clip_vision/dinov2_vitb14_pretrain.pth", dinov2(width=SMALL["context_width"]))
    save(models / "clip_vision/dinov2_vitl14_pretrain.pth", dinov2(seed=1, width=LARGE["context_width"]))


def save(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
