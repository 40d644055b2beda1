"""A tiny DreamSR in training: FLUX, autoencoder, text encoders and LPIPS as files, photos with prompts, settings.

Every architecture is the real one, with random weights from a seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from . import checkpoints

TEXT, POOLED = 32, 64
SIDE = 32
"""Of the crops, pixels."""
CHANNELS = (64, 128, 256, 512, 512)


def flux_weights(seed: int = 7) -> checkpoints.StateDict:
    return checkpoints.flux(seed, double_blocks=2, single_blocks=1, context_width=TEXT, pooled_width=POOLED)


def autoencoder(seed: int = 1) -> Any:
    """diffusers' AutoencoderKL with FLUX's 16 channels, two levels deep: 2 pixels a cell."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    network: Any = AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    return network.eval().requires_grad_(False)


def write_text_encoders(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(2)
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=32128,
            d_model=TEXT,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
        )
    )
    clip = CLIPTextModel(
        CLIPTextConfig(hidden_size=POOLED, intermediate_size=128, num_hidden_layers=2, num_attention_heads=1)
    )
    t5_weights = {name: value.clone() for name, value in t5.state_dict().items() if "embed_tokens" not in name}
    save_file(t5_weights, folder / "t5.safetensors")
    clip_weights = {
        name if name.startswith("text_model.") else f"text_model.{name}": value.clone()
        for name, value in clip.state_dict().items()
    }
    save_file(clip_weights, folder / "clip.safetensors")


def vgg_weights(seed: int = 3) -> dict[str, Tensor]:
    """Of torchvision's VGG-16, the part that LPIPS reads, under its names; activations stay near unit scale."""
    layers = [(0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256)]
    layers += [(17, 256, 512), *((index, 512, 512) for index in (19, 21, 24, 26, 28))]
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for index, inputs, outputs in layers:
        kernel = torch.randn(outputs, inputs, 3, 3, generator=generator)
        weights[f"features.{index}.weight"] = kernel * (2 / (9 * inputs)) ** 0.5
        weights[f"features.{index}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return weights


def head_weights(seed: int = 4) -> dict[str, Tensor]:
    """LPIPS's linear layers, which are nowhere negative, under the published names."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"lin{stage}.model.1.weight": torch.rand(1, channels, 1, 1, generator=generator)
        for stage, channels in enumerate(CHANNELS)
    }


def write_models(folder: Path) -> Path:
    """Every file that a run names, except tokenizers."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(flux_weights(), folder / "flux.safetensors")
    autoencoder().save_pretrained(folder / "vae")
    write_text_encoders(folder)
    torch.save(vgg_weights(), folder / "vgg16.pth")
    torch.save(head_weights(), folder / "lpips.pth")
    return folder


def write_photos(folder: Path, count: int = 3, side: int = 48, crop: int = SIDE) -> Path:
    """Photos with sidecars: a prompt each, and prompts of two crops."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        rng = np.random.default_rng(index)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"photo{index}.png")
        (folder / f"photo{index}.txt").write_text(f"photo number {index}", encoding="utf-8")
        crops = [
            {"width": side, "height": side, "left": at, "top": at, "side": crop, "prompt": f"part {at} of {index}"}
            for at in (0, side - crop)
        ]
        content = {"prompt": f"photo number {index}", "crops": crops}
        (folder / f"photo{index}.crops.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def settings(models: Path, photos: Path, tokenizers: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """A run's YAML as a dictionary; changes replace whole keys."""
    return {
        "out": str(out),
        "steps": 4,
        "batch": 2,
        "precision": "fp32",
        "workers": 0,
        "threads": 1,
        "log": {"trackers": []},
        "data": {
            "sources": [{"folder": str(photos)}],
            "crop": SIDE,
            "degradation": [{"kind": "simple", "scales": [2], "scale_weights": [1.0]}],
        },
        "models": {
            "flux": str(models / "flux.safetensors"),
            "vae": str(models / "vae"),
            "t5": str(models / "t5.safetensors"),
            "clip": str(models / "clip.safetensors"),
            "tokenizers": str(tokenizers),
        },
        "prompt_tokens": 6,
        "control": {"layers": 2},
        "lpips": {"backbone": str(models / "vgg16.pth"), "head": str(models / "lpips.pth")},
        "discriminator": {"width": 8},
        "restore": {"texture_steps": 2},
        "export": {"dtype": "fp32"},
        "optimizer": {"learning_rate": 1e-3},
    } | changes
