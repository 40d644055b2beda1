"""VOSR's autoencoders, as the host's VAE objects run them, against the reference."""

from __future__ import annotations

import pytest
import torch

from parity import golden
from realisr.models.vosr import qwen_vae

SD_OUT_TOLERANCE, SD_MID_TOLERANCE = 5e-6, 2e-5
DECODER_OUT_TOLERANCE, DECODER_MID_TOLERANCE = 1e-5, 1e-4
QWEN_OUT_TOLERANCE, QWEN_MID_TOLERANCE = 1e-5, 1e-4

SD_ENCODE = golden.cases("sd_vae_encode")
LIGHT_DECODE = golden.cases("lwdecoder")
QWEN = golden.cases("qwen_vae")


@pytest.fixture(scope="module")
def sd_vae(host, tmp_path_factory):
    """The encoder of the reference with its light decoder, through the loader and from files as released."""
    from safetensors.torch import save_file

    from realisr.host.vosr.vae import load_vae_files

    folder = tmp_path_factory.mktemp("sd_vae")
    save_file(golden.weights("sd_vae")[1], folder / "diffusion_pytorch_model.safetensors")
    config, state_dict = golden.weights("lwdecoder")
    torch.save({"config": config, "model_state_dict": state_dict}, folder / "sd21_lwdecoder.pth")
    return load_vae_files(folder, folder / "sd21_lwdecoder.pth")


@pytest.fixture(scope="module")
def qwen(host, tmp_path_factory):
    from safetensors.torch import save_file

    from realisr.host.vosr.vae import load_vae_files

    path = tmp_path_factory.mktemp("qwen_vae") / "diffusion_pytorch_model.safetensors"
    save_file(golden.weights("qwen_vae")[1], path)
    return load_vae_files(path)


def record(parts: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """Outputs of modules by the names golden files give them, filled during the next forward."""
    seen: dict[str, torch.Tensor] = {}
    for name, module in parts.items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output.detach().clone())
        )
    return seen


def as_images(case_image: torch.Tensor) -> torch.Tensor:
    """`[1, 3, H, W]` in [-1, 1] -> the host's `[1, H, W, 3]` in 0..1."""
    return (case_image.movedim(1, -1) + 1) / 2


def check_mids(case: golden.Case, seen: dict[str, torch.Tensor], tolerance: float) -> None:
    for key in case.keys("mid/*"):
        golden.assert_within(seen[key.removeprefix("mid/")], case[key], tolerance, key)


@torch.no_grad()
@pytest.mark.parametrize("case", SD_ENCODE)
def test_sd_encoder(sd_vae, case):
    """Sides that are no multiples of 8 reach only the module: the host's VAE object crops them."""
    from realisr.host.vosr.vae import encode_moments, posterior_of

    image, scale = case["in/image"], case.parameters["scaling_factor"]
    mean, logvar = posterior_of(sd_vae.first_stage_model)(image).chunk(2, dim=1)
    check_mids(case, {"mean": mean, "logvar": logvar}, SD_MID_TOLERANCE)
    drawn = (mean + torch.exp(0.5 * logvar) * case["in/noise"]) * scale
    golden.assert_within(drawn, case["out/latent"], SD_OUT_TOLERANCE)
    golden.assert_within(mean * scale, case["out/latent_mode"], SD_OUT_TOLERANCE)
    golden.assert_within(sd_vae.first_stage_model.encode(image) * scale, case["out/latent_mode"], SD_OUT_TOLERANCE)
    if image.shape[-1] % 8 == image.shape[-2] % 8 == 0:
        mean, logvar = encode_moments(sd_vae, as_images(image))
        check_mids(case, {"mean": mean, "logvar": logvar}, SD_MID_TOLERANCE)
        golden.assert_within(sd_vae.encode(as_images(image)) * scale, case["out/latent_mode"], SD_OUT_TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("case", LIGHT_DECODE)
def test_light_decoder(sd_vae, case):
    decoder = sd_vae.first_stage_model.decoder
    stages = {f"up{len(decoder.up) - 1 - level}": stage for level, stage in enumerate(decoder.up)}
    parts = {
        "conv_in": decoder.conv_in,
        "mid": decoder.mid.block_2,
        "raw": decoder,
        **{name: getattr(stage, "upsample", stage.block[-1]) for name, stage in stages.items()},
    }
    seen = record(parts)
    latent = case["in/latent_scaled"] / case.parameters["scaling_factor"]
    image = sd_vae.decode(latent)
    golden.assert_within(image.movedim(-1, 1) * 2 - 1, case["out/image"], DECODER_OUT_TOLERANCE)
    check_mids(case, seen, DECODER_MID_TOLERANCE)


def qwen_parts(half: torch.nn.Module, blocks: str, name: str) -> dict[str, torch.nn.Module]:
    return {
        "mid": half.mid_block,
        "mid_attn": half.mid_block.attentions[0],
        **{f"{name}{index}": block for index, block in enumerate(getattr(half, blocks))},
    }


@torch.no_grad()
@pytest.mark.parametrize("case", QWEN)
def test_qwen_vae(qwen, case):
    mean_of, std_of = (
        torch.tensor(values).view(1, -1, 1, 1) for values in (qwen_vae.LATENTS_MEAN, qwen_vae.LATENTS_STD)
    )
    module = qwen.first_stage_model
    if "in/latent_norm" in case:
        seen = record({**qwen_parts(module.decoder, "up_blocks", "up"), "raw": module.decoder})
        image = qwen.decode(case["in/latent_norm"] * std_of + mean_of)
        golden.assert_within(image.movedim(-1, 1) * 2 - 1, case["out/image"], QWEN_OUT_TOLERANCE)
    else:
        from realisr.host.vosr.vae import encode_moments

        seen = record(qwen_parts(module.encoder, "down_blocks", "down"))
        mean, logvar = encode_moments(qwen, as_images(case["in/image"]))
        seen |= {"mean": mean, "logvar": logvar}
        drawn = mean + torch.exp(0.5 * logvar) * case["in/noise"]
        golden.assert_within((drawn - mean_of) / std_of, case["out/latent_norm"], QWEN_OUT_TOLERANCE)
        golden.assert_within((mean - mean_of) / std_of, case["out/latent_norm_mode"], QWEN_OUT_TOLERANCE)
        encoded = qwen.encode(as_images(case["in/image"]))
        golden.assert_within((encoded - mean_of) / std_of, case["out/latent_norm_mode"], QWEN_OUT_TOLERANCE)
    check_mids(case, seen, QWEN_MID_TOLERANCE)


def test_statistics_are_the_references():
    config, _ = golden.weights("qwen_vae")
    if "latents_mean" not in config:
        pytest.skip("the golden autoencoder's config has no latent statistics")
    assert list(qwen_vae.LATENTS_MEAN) == config["latents_mean"]
    assert list(qwen_vae.LATENTS_STD) == config["latents_std"]
