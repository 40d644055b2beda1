"""The harness's small checkpoints load through ComfyUI's own loaders and run."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from harness import checkpoints

LATENT = {"samples": torch.zeros(1, 16, 8, 12)}


@pytest.fixture
def conditioning() -> list:
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(1, 5, 64, generator=generator)
    return [[text, {"pooled_output": torch.randn(1, 768, generator=generator), "guidance": 3.5}]]


def sample(host, model, positive, negative, latent=LATENT) -> torch.Tensor:
    import nodes

    (result,) = host.run(
        nodes.KSampler,
        model=model,
        seed=5,
        steps=2,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        positive=positive,
        negative=negative,
        latent_image=latent,
        denoise=1.0,
    )
    return result["samples"]


def test_flux_loads_and_samples(host, conditioning):
    import comfy.model_base
    import nodes

    name = host.save_model("diffusion_models", "tiny_flux.safetensors", checkpoints.flux())
    (model,) = host.run(nodes.UNETLoader, unet_name=name, weight_dtype="default")
    assert type(model.model) is comfy.model_base.Flux
    config = model.model.diffusion_model.params
    assert (config.hidden_size, config.depth, config.depth_single_blocks, config.context_in_dim) == (256, 3, 3, 64)
    samples = sample(host, model, conditioning, conditioning)
    assert samples.shape == LATENT["samples"].shape
    assert samples.isfinite().all()
    assert 0.1 < samples.std() < 10


def test_flux_fill_loads_and_samples(host, conditioning):
    import comfy.supported_models
    import nodes

    name = host.save_model("diffusion_models", "tiny_fill.safetensors", checkpoints.flux(fill_model=True))
    (model,) = host.run(nodes.UNETLoader, unet_name=name, weight_dtype="default")
    assert type(model.model.model_config) is comfy.supported_models.FluxInpaint
    vae_name = host.save_model("vae", "tiny_taesd_16.safetensors", checkpoints.taesd())
    (vae,) = host.run(nodes.VAELoader, vae_name=vae_name)
    pixels = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 64, 96)
    mask[:, :, 48:] = 1
    positive, negative, latent = host.run(
        nodes.InpaintModelConditioning,
        positive=conditioning,
        negative=conditioning,
        pixels=pixels,
        vae=vae,
        mask=mask,
        noise_mask=True,
    )
    samples = sample(host, model, positive, negative, latent)
    assert samples.shape == (1, 16, 8, 12)
    assert samples.isfinite().all()


@pytest.mark.parametrize("make", [checkpoints.autoencoder_kl, checkpoints.taesd], ids=["autoencoder_kl", "taesd"])
def test_autoencoders_load_encode_and_decode(host, make):
    import nodes

    name = host.save_model("vae", f"tiny_{make.__name__}_4.safetensors", make(latent_channels=4))
    (vae,) = host.run(nodes.VAELoader, vae_name=name)
    pixels = torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(3))
    (latent,) = host.run(nodes.VAEEncode, vae=vae, pixels=pixels)
    assert latent["samples"].shape == (1, 4, 6, 8)
    (decoded,) = host.run(nodes.VAEDecode, vae=vae, samples=latent)
    assert decoded.shape == pixels.shape
    assert decoded.isfinite().all()
    assert decoded.std() > 0


def test_the_same_seed_makes_the_same_checkpoint():
    first, second, other = checkpoints.dinov2(1), checkpoints.dinov2(1), checkpoints.dinov2(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["pos_embed"], other["pos_embed"])


def test_no_weight_is_zero():
    vosr = checkpoints.vosr(checkpoints.vosr_config())
    for state_dict in (checkpoints.flux(), checkpoints.taesd(), checkpoints.dinov2(), vosr):
        assert [name for name, tensor in state_dict.items() if not tensor.any()] == []


def test_dinov2_loads_into_transformers_under_its_own_names(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    save_file(checkpoints.dinov2_hf(checkpoints.dinov2(width=24, depth=4)), tmp_path / "model.safetensors")
    config = Dinov2Config(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=518,
        patch_size=14,
        architectures=["Dinov2Model"],
    )
    config.save_pretrained(tmp_path)
    model, report = Dinov2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert {kind: list(names) for kind, names in report.items() if names} == {}
    assert model(torch.zeros(1, 3, 56, 56)).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("sizes", [{}, {"latent_channels": 16, "has_end_time": True}, {"context_width": 0}], ids=str)
def test_vosr_shapes_and_args_agree(sizes, tmp_path):
    from safetensors.torch import load_file

    from realisr.models.vosr.config import VOSRConfig

    config = checkpoints.vosr_config(**sizes)
    folder = checkpoints.save_vosr_folder(tmp_path / "VOSR_tiny", config)
    weights = load_file(folder / "checkpoints" / "ema_model.safetensors")
    read = VOSRConfig.from_shapes({name: tensor.shape for name, tensor in weights.items()})
    assert read.disagreements(checkpoints.vosr_args(config)) == []
    assert (read.hidden_size, read.depth, read.has_end_time) == (config.hidden_size, config.depth, config.has_end_time)
