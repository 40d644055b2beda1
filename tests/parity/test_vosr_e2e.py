"""8-bit image to 8-bit image against the reference, through the pack's loaders, conditioning, guider and VAEs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from parity import golden
from realisr.models import color
from realisr.models import image as resize
from realisr.models.vosr.sampling import RestorationGuidance, euler_times, weak_strength_from_args

FLOAT_TOLERANCE = 5e-5
LEVELS, EXACT = 3, 0.999


def load_model(host, case):
    from realisr.host.vosr.loader import load_vosr_model

    name = f"golden_{case.parameters['model']}.safetensors"
    _, state_dict = golden.weights(f"dit_{case.parameters['model']}")
    host.save_model("diffusion_models", name, state_dict)
    return load_vosr_model(name)


def load_vae(case, folder):
    from realisr.host.vosr.vae import load_vae_files

    decoder = None
    if case.parameters["ae"] == "sd2":
        config, state_dict = golden.weights("lwdecoder")
        decoder = folder / "sd21_lwdecoder.pth"
        torch.save({"config": config, "model_state_dict": state_dict}, decoder)
    weights = "sd_vae" if case.parameters["ae"] == "sd2" else "qwen_vae"
    save_file(golden.weights(weights)[1], folder / "diffusion_pytorch_model.safetensors")
    return load_vae_files(folder, decoder)


def load_vision(case, folder):
    from realisr.host.vosr.vision import load_dinov2

    config, state_dict = golden.weights(case.parameters["dino"])
    path = folder / "dinov2_pretrain.pth"
    torch.save(state_dict, path)
    return load_dinov2(path, num_heads=config["num_heads"])


def conditioning_with_drawn_latent(case, image, vae, vision):
    """The pack's conditioning, with the reference's posterior noise in place of a seeded draw."""
    from realisr.host.vosr.conditioning import EncodeOptions, SquareTiles, build_conditioning
    from realisr.host.vosr.vae import encode_moments

    options = EncodeOptions(
        weak_strength=weak_strength_from_args({"weak_cond_strength_aelq_list": case.parameters["weak_list"]}),
        tiles=SquareTiles(case.parameters["tile"], case.parameters["ov"] if case.parameters["tile"] else 0),
    )
    made = build_conditioning(image, vae, vision, options)
    mean, logvar = encode_moments(vae, image)
    latent = mean + torch.exp(0.5 * logvar) * case["in/posterior_noise"]
    drawn = {"concat_latent_image": latent}
    full, weak = ([[entry[0], {**entry[1], **drawn}] for entry in wire] for wire in (made.full, made.weak))
    return replace(made, full=full, weak=weak), latent


@torch.inference_mode()
@pytest.mark.parametrize("case", golden.cases("e2e_*"))
def test_image_to_image(host, case, tmp_path, monkeypatch):
    import comfy.samplers

    from realisr.host.vosr import vision as host_vision
    from realisr.host.vosr.guider import RestorationGuider

    model, vae, vision = load_model(host, case), load_vae(case, tmp_path), load_vision(case, tmp_path)
    (block,) = case.parameters.get("dino_layers") or [host_vision.feature_block(len(vision.model.encoder.layer))]
    monkeypatch.setattr(host_vision, "feature_block", lambda depth: block)
    height, width = (side * case.parameters["up"] for side in case.parameters["img"])
    upscaled = resize.upscale(resize.from_bytes(case["in/u8"])[None], width, height)
    conditioning, latent = conditioning_with_drawn_latent(case, upscaled, vae, vision)
    space = model.model.latent_format
    if "mid/lq_latent" in case:
        golden.assert_within(space.process_in(latent), case["mid/lq_latent"], FLOAT_TOLERANCE, "LQ latent")

    guidance = RestorationGuidance(case.parameters["s"] if case.parameters["kind"] == "ms" else 1.0)
    guider = RestorationGuider(model, conditioning.full, conditioning.weak, guidance)
    sampled = guider.sample(
        case["in/noise"],
        conditioning.latent["samples"],
        comfy.samplers.ksampler("euler"),
        euler_times(case.parameters["n"]),
        disable_pbar=True,
        seed=0,
    )
    if "mid/sr_latent" in case:
        golden.assert_within(space.process_in(sampled), case["mid/sr_latent"], FLOAT_TOLERANCE, "restored latent")
    restored = vae.decode(sampled)
    if "out/sr" in case:
        expected = (case["out/sr"].movedim(1, -1) + 1) / 2
        golden.assert_within(restored, expected.clamp(0, 1), FLOAT_TOLERANCE, "restored image")
    aligned = color.align_colors(restored, upscaled, case.parameters["align"], quantise=True)
    golden.assert_levels(*case.reference("out/final_u8", resize.to_bytes(aligned)[0]), LEVELS, EXACT)
