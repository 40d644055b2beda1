"""A tiny VICR to train: every frozen file in the layout that users have, photos with prompts, settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from . import checkpoints

TEXT, POOLED, EMBEDDING, HIDDEN = 64, 64, 48, 256
"""Widths of T5's tokens, CLIP's pooled text, CLIP's image embedding, and FLUX."""
PANEL = 32


def tiny_flux_fill(seed: int = 3, **sizes: Any) -> checkpoints.StateDict:
    small = {"double_blocks": 2, "single_blocks": 2, "context_width": TEXT, "pooled_width": POOLED}
    return checkpoints.flux(seed, fill_model=True, **(small | sizes))


def tiny_autoencoder(seed: int = 5) -> checkpoints.StateDict:
    """In the names of ae.safetensors; with a posterior of next to no spread."""
    state = checkpoints.fill(checkpoints.autoencoder_kl_shapes(16, 32, 32), seed)
    state["quant_conv.weight"][16:] = 0
    state["quant_conv.bias"][16:] = -30
    return state


def shapes_of(module: torch.nn.Module, prefix: str = "") -> checkpoints.Shapes:
    for name, value in module.state_dict().items():
        yield prefix + name.removeprefix(prefix), tuple(value.shape)


def tiny_t5(seed: int = 6) -> checkpoints.StateDict:
    """In the names of t5xxl_fp16.safetensors."""
    from transformers import T5Config, T5EncoderModel

    sizes: dict[str, Any] = {
        "d_model": TEXT,
        "d_kv": 16,
        "d_ff": 96,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 32128,
    }
    with torch.device("meta"):
        network = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu"))
    state = checkpoints.fill(shapes_of(network), seed)
    return {name: value for name, value in state.items() if name != "encoder.embed_tokens.weight"}


def tiny_clip_text(seed: int = 7) -> checkpoints.StateDict:
    """In the names of clip_l.safetensors."""
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes: dict[str, Any] = {
        "hidden_size": POOLED,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
    }
    with torch.device("meta"):
        network = CLIPTextModel(CLIPTextConfig(**sizes, vocab_size=49408))
    return checkpoints.fill(shapes_of(network, "text_model."), seed)


def tiny_clip_vision(seed: int = 8) -> checkpoints.StateDict:
    """In the names of clip_vision_l.safetensors."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
    }
    config = CLIPVisionConfig(**sizes, image_size=56, patch_size=14, projection_dim=EMBEDDING)
    with torch.device("meta"):
        network = CLIPVisionModelWithProjection(config)
    return checkpoints.fill(shapes_of(network), seed)


FILES = {
    "flux": ("flux1-fill-dev", tiny_flux_fill),
    "vae": ("ae", tiny_autoencoder),
    "t5": ("t5xxl_fp16", tiny_t5),
    "clip": ("clip_l", tiny_clip_text),
    "clip_vision": ("clip_vision_l", tiny_clip_vision),
}


def save_models(folder: Path, comfyui: Path) -> dict[str, str]:
    """Write all files into a folder; returns the `models` part of the settings."""
    folder.mkdir(parents=True, exist_ok=True)
    models = {"tokenizers": str(comfyui)}
    for name, (file, make) in FILES.items():
        path = folder / f"{file}.safetensors"
        if not path.is_file():
            save_file(make(), path)
        models[name] = str(path)
    return models


def save_photos(folder: Path, count: int = 3, side: int = 48) -> Path:
    """Smooth random photos with a prompt each."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        coarse = np.random.default_rng(index).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"photo{index}.png")
        (folder / f"photo{index}.txt").write_text(f"A photo of number {index}.", encoding="utf-8")
    return folder


def vicr_settings(out: Path, models: Mapping[str, str], photos: Path, **changes: Any) -> dict[str, Any]:
    """What a YAML would hold, for a run of a few steps on the CPU."""
    return {
        "out": str(out),
        "models": dict(models),
        "data": {"sources": [{"folder": str(photos)}], "crop": PANEL},
        "steps": 20,
        "batch": 2,
        "precision": "fp32",
        "workers": 0,
        "rank": 4,
        "prompt_tokens": 12,
        "optimizer": {"name": "adamw", "learning_rate": 3e-3},
        "log": {"trackers": []},
        "export": {"dtype": "fp32"},
        "sampling": {"steps": 3},
    } | changes


def make_method(settings: Mapping[str, Any]) -> Any:
    from realisr.training.vicr.method import VICRMethod

    return VICRMethod(VICRMethod.config_type.model_validate(settings))
