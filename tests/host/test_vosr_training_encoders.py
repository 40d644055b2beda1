"""What VOSR's training encodes, without ComfyUI, equals what the nodes encode of the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness import checkpoints
from harness.autoencoders import qwen_vae, sd21_vae
from harness.vosr import relative_error

CPU = torch.device("cpu")
TOLERANCE = 1e-5
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def pictures(height: int = 48, width: int = 64) -> torch.Tensor:
    """Images `[B, H, W, 3]` in 0..1, as the host has them."""
    return torch.rand(2, height, width, 3, generator=torch.Generator().manual_seed(5))


def signed(images: torch.Tensor) -> torch.Tensor:
    return images.movedim(-1, 1) * 2 - 1


def latents(kind: str, path: Path) -> Any:
    from realisr.training.vosr.latents import make_latents

    return make_latents({"ae_type": kind}, path, CPU)


def diffusers_layout(tensors: dict[str, torch.Tensor], old: bool) -> dict[str, torch.Tensor]:
    """A latent-diffusion autoencoder in diffusers naming, with today's or the first attention names."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    stages = ["x"] * 4
    renamed = convert_ldm_vae_checkpoint(dict(tensors), {"down_block_types": stages, "up_block_types": stages})
    if not old:
        return renamed
    for new_part, old_part in OLD_ATTENTION.items():
        new, old_name = f"attentions.0.{new_part}.", f"attentions.0.{old_part}."
        renamed = {key.replace(new, old_name): value for key, value in renamed.items()}
    return renamed


@pytest.fixture(params=["latent-diffusion", "diffusers", "old diffusers", "folder"])
def sd_file(request, host) -> Path:
    tensors, folder = sd21_vae(), host.models / "vae"
    if request.param == "latent-diffusion":
        return folder / host.save_model("vae", "train_sd21.safetensors", tensors)
    tensors = diffusers_layout(tensors, request.param.startswith("old"))
    name = "train_sd21/vae/diffusion_pytorch_model.safetensors" if request.param == "folder" else "train_d.safetensors"
    path = folder / host.save_model("vae", name, tensors)
    return path.parent.parent if request.param == "folder" else path


def check_against_the_nodes(space: Any, vae: Any, process_in: Any, pixels: torch.Tensor) -> None:
    """Posterior mean and a sample of it, normalised, and what latents decode to."""
    from realisr.host.vosr.vae import encode_moments

    mean, logvar = encode_moments(vae, pixels)
    with torch.no_grad():
        posterior = space.posterior(signed(pixels))
        assert relative_error(space.latent(posterior), process_in(mean)) < TOLERANCE
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
        sample = mean + (0.5 * logvar).exp() * noise
        assert relative_error(space.latent(posterior, noise), process_in(sample)) < TOLERANCE
        assert relative_error(sample, mean) > 1e-3, "the posterior has no width: the sample shows nothing"
        decoded = space.decode(process_in(mean)).add(1).div(2).clamp(0, 1).movedim(1, -1)
    assert relative_error(decoded, vae.decode(mean)) < TOLERANCE
    assert space.channels == mean.shape[1] and space.downscale == pixels.shape[1] // mean.shape[2]


def test_sd21_latents_are_the_nodes(host, sd_file):
    import comfy.latent_formats

    from realisr.host.vosr.vae import load_vae_files

    check_against_the_nodes(
        latents("sd2", sd_file), load_vae_files(sd_file), comfy.latent_formats.SD15().process_in, pictures()
    )


def test_qwen_latents_are_the_nodes(host):
    from realisr.host.vosr.latent import QwenImage2D
    from realisr.host.vosr.vae import load_vae_files

    path = host.models / "vae" / host.save_model("vae", "train-qwen/diffusion_pytorch_model.safetensors", qwen_vae())
    check_against_the_nodes(latents("qwen", path), load_vae_files(path), QwenImage2D().process_in, pictures())


@pytest.mark.parametrize("naming", ["hub", "transformers", "hub pickle"])
@pytest.mark.parametrize(("height", "width"), [(40, 60), (448, 448)])
def test_vision_features_are_the_nodes(host, naming, height, width):
    from realisr.host.vosr.vision import encode_vosr_features, load_dinov2
    from realisr.training.vosr.vision import VisionFeatures

    tensors = checkpoints.dinov2(width=128, depth=4)
    folder = host.models / "clip_vision"
    if naming == "hub pickle":
        path = folder / "train_dinov2_vitb14_pretrain.pth"
        torch.save(tensors, path)
    else:
        named = tensors if naming == "hub" else checkpoints.dinov2_hf(tensors)
        path = folder / host.save_model("clip_vision", f"train_dinov2_{naming}.safetensors", named)
    pixels = pictures(height, width)
    node = load_dinov2(path)
    for layer in (None, 0, 3):
        features = VisionFeatures(path, CPU, layer)
        with torch.no_grad():
            found = features(signed(pixels))
        assert found.shape == (2, features.tokens, features.width) == (2, 1024, 128)
        assert relative_error(found, encode_vosr_features(node, pixels, layer)) < TOLERANCE, layer


def test_a_meta_build_reads_headers_alone(host, tmp_path):
    """The same names and shapes, no values."""
    from realisr.training.vosr.latents import make_latents
    from realisr.training.vosr.vision import VisionFeatures

    meta = torch.device("meta")
    for kind, tensors in (("sd2", sd21_vae()), ("qwen", qwen_vae())):
        save_file(tensors, tmp_path / f"{kind}.safetensors")
        space = make_latents({"ae_type": kind}, tmp_path / f"{kind}.safetensors", meta)
        assert all(value.is_meta for value in space.vae.parameters())
        assert (space.channels, space.downscale) == ({"sd2": 4, "qwen": 16}[kind], 8)
    torch.save(checkpoints.dinov2(width=64, depth=4), tmp_path / "dinov2.pth")
    features = VisionFeatures(tmp_path / "dinov2.pth", meta)
    assert all(value.is_meta for value in features.network.parameters())
    assert (features.tokens, features.width, features.layer) == (1024, 64, 2)


@pytest.mark.parametrize(
    ("kind", "tensors", "message"),
    [
        ("qwen", sd21_vae, "which looks like a KL autoencoder.*the model needs 'qwen'"),
        ("sd2", qwen_vae, "which looks like a Qwen-Image VAE.*the model needs 'sd2'"),
        ("sd2", lambda: checkpoints.dinov2(), "which looks like a DINOv2 encoder"),
        ("sd2", lambda: {**sd21_vae(), "extra.weight": torch.zeros(1)}, "extra.weight"),
    ],
)
def test_other_files_are_named(host, tmp_path, kind, tensors, message):
    path = tmp_path / "vae.safetensors"
    save_file(tensors(), path)
    with pytest.raises(ValueError, match=message):
        latents(kind, path)
