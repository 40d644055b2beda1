"""The Qwen-Image autoencoder: exactly the released tensors, and the video model's numbers on a single frame."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from _pack import load_pack

from harness.autoencoders import qwen_vae, randomised

load_pack()

from realisr.models.vosr.qwen_vae import LATENTS_MEAN, LATENTS_STD, QwenImageVAE, QwenVAEConfig  # noqa: E402
from realisr.models.vosr.qwen_vae_video import from_video, is_video  # noqa: E402

FORMATS = Path(__file__).resolve().parents[1] / "formats"
TINY = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}


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


@torch.no_grad()
def test_a_frame_of_the_video_model_in_diffusers_naming():
    from diffusers import AutoencoderKLQwenImage

    video = AutoencoderKLQwenImage(**TINY, temperal_downsample=[False, True, True]).eval()
    video.load_state_dict(randomised(video))
    state_dict = video.state_dict()
    assert is_video(state_dict)
    image = load_image_vae(from_video(state_dict))

    pixels, latent = torch.rand(1, 3, 32, 48) * 2 - 1, torch.randn(1, 16, 4, 6)
    posterior = video.encode(pixels[:, :, None]).latent_dist
    mean, logvar = image.encode_moments(pixels)
    torch.testing.assert_close(mean, posterior.mean[:, :, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(logvar, posterior.logvar[:, :, 0], atol=1e-5, rtol=0)
    decoded = image.decode(latent).clamp(-1, 1)
    torch.testing.assert_close(decoded, video.decode(latent[:, :, None]).sample[:, :, 0], atol=1e-5, rtol=0)


def load_image_vae(state_dict: dict[str, torch.Tensor]) -> QwenImageVAE:
    config = QwenVAEConfig.from_shapes({key: value.shape for key, value in state_dict.items()})
    module = QwenImageVAE(config)
    module.load_state_dict(state_dict, strict=True)
    return module.eval()
