"""The Qwen-Image autoencoder: exactly the released tensors, and the video model's numbers on a single frame."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness.autoencoders import qwen_vae
from realisr.models.vosr.qwen_vae import LATENTS_MEAN, LATENTS_STD, QwenImageVAE, QwenVAEConfig
from realisr.models.vosr.qwen_vae_video import from_video, is_video

FORMATS = Path(__file__).resolve().parents[1] / "formats"


def test_exactly_the_released_tensors():
    keys = json.loads((FORMATS / "qwen_image_vae_2d.keys.json").read_text())
    published = json.loads((FORMATS / "qwen_image_vae_2d.config.json").read_text())
    config = QwenVAEConfig.from_shapes(keys)
    assert config == QwenVAEConfig()
    module = QwenImageVAE(config, device="meta")
    assert {key: list(value.shape) for key, value in module.state_dict().items()} == keys
    assert sum(value.numel() for value in module.parameters()) == published["parameters"]
    assert list(LATENTS_MEAN) == published["config"]["latents_mean"]
    assert list(LATENTS_STD) == published["config"]["latents_std"]


@pytest.mark.parametrize(
    "config", [QwenVAEConfig(base_dim=8), QwenVAEConfig(base_dim=16, z_dim=4, dim_mult=(1, 2, 2), num_res_blocks=1)]
)
def test_config_is_read_off_the_shapes(config):
    shapes = {key: value.shape for key, value in QwenImageVAE(config, device="meta").state_dict().items()}
    assert QwenVAEConfig.from_shapes(shapes) == config


def test_the_image_file_is_no_video_file():
    assert not is_video(qwen_vae())


def test_the_video_file_in_diffusers_naming_holds_the_image_file():
    """Same names; a frame sees the last slice of a kernel along time."""
    image = qwen_vae()
    video = {}
    for name, value in image.items():
        if name.endswith(".weight") and value.shape[-1] == 3:
            value = torch.stack([torch.randn_like(value), torch.randn_like(value), value], dim=2)
        elif name.endswith(".weight"):
            value = value[:, :, None]
        elif name.endswith(".gamma") and "attentions" not in name:
            value = value[..., None]
        video[name] = value
    video["encoder.down_blocks.5.time_conv.weight"] = torch.randn(16, 16, 3, 1, 1)
    video["decoder.up_blocks.0.upsamplers.0.time_conv.bias"] = torch.randn(64)
    assert is_video(video)
    reduced = from_video(video)
    assert reduced.keys() == image.keys()
    assert all(torch.equal(reduced[name], image[name]) for name in image)
