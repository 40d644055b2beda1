"""FLUX's files as users have them, read for training: FLUX's own names and diffusers', text and image encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness import checkpoints
from harness.vicr_training import (
    EMBEDDING,
    POOLED,
    TEXT,
    tiny_autoencoder,
    tiny_clip_text,
    tiny_clip_vision,
    tiny_flux_fill,
    tiny_t5,
)

CPU, META = torch.device("cpu"), torch.device("meta")


def load_flux(path: Path, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> Any:
    from realisr.training.flux.transformer import load_transformer

    return load_transformer(path, device, dtype)


def load_encoder(kind: str, path: Path) -> Any:
    from realisr.training.flux import encoders

    return encoders.load_encoder(getattr(encoders, kind), path, CPU, torch.float32)


LAYOUTS = {
    "FLUX's own": lambda state: state,
    "an all-in-one checkpoint": lambda state: {f"model.diffusion_model.{name}": value for name, value in state.items()},
    "diffusers": checkpoints.flux_diffusers,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("guidance", [True, False])
def test_transformer(tmp_path, layout, guidance):
    state = tiny_flux_fill(guidance=guidance, double_blocks=1, single_blocks=1)
    save_file(LAYOUTS[layout](state), tmp_path / "flux.safetensors")
    network = load_flux(tmp_path / "flux.safetensors")
    expected = checkpoints.flux_diffusers(state)
    found = network.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not any(value.requires_grad for value in network.parameters()) and not network.training
    assert network.config.guidance_embeds is guidance
    assert load_flux(tmp_path / "flux.safetensors", META).config == network.config


def test_transformer_of_a_diffusers_folder_in_parts(tmp_path):
    state = checkpoints.flux_diffusers(tiny_flux_fill(double_blocks=1, single_blocks=1))
    folder = tmp_path / "FLUX.1-Fill-dev" / "transformer"
    folder.mkdir(parents=True)
    names = sorted(state)
    parts = {"a-00001.safetensors": names[::2], "a-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    places = {name: file for file, part in parts.items() for name in part}
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    for path in (folder, folder.parent):
        found = load_flux(path, dtype=torch.bfloat16).state_dict()
        assert all(torch.equal(found[name], value.bfloat16()) for name, value in state.items())


def test_plain_fp8_is_read(tmp_path):
    state = {name: value.to(torch.float8_e4m3fn) for name, value in tiny_flux_fill(double_blocks=1).items()}
    save_file(state, tmp_path / "fp8.safetensors")
    found = load_flux(tmp_path / "fp8.safetensors").x_embedder.weight
    assert torch.equal(found, state["img_in.weight"].float())


def without(state: checkpoints.StateDict, name: str) -> checkpoints.StateDict:
    return {key: value for key, value in state.items() if key != name}


WRONG = {
    "lacks one": (lambda s: without(s, "single_blocks.1.linear2.bias"), "lacks single_blocks.1.linear2.bias"),
    "lacks an embedder": (lambda s: without(s, "txt_in.weight"), "lacks 'txt_in.weight'"),
    "too much": (lambda s: {**s, "extra.weight": torch.zeros(1)}, "unexpected extra.weight"),
    "misshapen": (
        lambda s: {**s, "single_blocks.0.linear2.bias": torch.zeros(5)},
        r"single_transformer_blocks.0.proj_out.bias is \[5\], expected \[256\]",
    ),
    "a VAE": (lambda s: tiny_autoencoder(), "looks like a KL autoencoder"),
    "scaled": (
        lambda s: {**s, "img_in.scale_weight": torch.ones(1)},
        "quantised with scales .*Use the bf16, fp16, fp32 or plain fp8",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_are_named(tmp_path, kind):
    change, said = WRONG[kind]
    save_file(change(tiny_flux_fill()), tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=said):
        load_flux(tmp_path / "wrong.safetensors", META)


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*none\.safetensors"):
        load_flux(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors file in"):
        load_flux(tmp_path)
    (tmp_path / "flux.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"flux\.gguf is no \.safetensors file"):
        load_flux(tmp_path / "flux.gguf")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(ValueError, match=r"cut\.safetensors is damaged or incomplete"):
        load_flux(tmp_path / "cut.safetensors")
    for name in ("one", "two"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"holds 3 \.safetensors files and no index"):
        load_flux(tmp_path)


# --- autoencoder -----------------------------------------------------------------------------------------------------


def test_autoencoder_in_both_namings(tmp_path):
    """The original's file equals the folder that diffusers writes of it; encoding is the scaled mean."""
    from realisr.training.flux.autoencoder import load_autoencoder

    save_file(tiny_autoencoder(), tmp_path / "ae.safetensors")
    ours = load_autoencoder(tmp_path / "ae.safetensors", CPU, torch.float32)
    ours.network.save_pretrained(tmp_path / "pipeline" / "vae")
    again = load_autoencoder(tmp_path / "pipeline", CPU, torch.float32)
    images = torch.rand(2, 3, 16, 32) * 2 - 1
    latents = ours.encode(images)
    assert latents.shape == (2, 16, 2, 4) and ours.cell == 8
    with torch.no_grad():
        expected = ours.network.encode(images).latent_dist.mean
    torch.testing.assert_close(latents, (expected - 0.1159) * 0.3611, rtol=1e-4, atol=1e-5)
    assert torch.equal(again.encode(images), latents)
    assert torch.equal(again.decode(latents), ours.decode(latents)) and ours.decode(latents).shape == images.shape
    with torch.no_grad():
        decoded = ours.network.decode(latents / 0.3611 + 0.1159).sample
    torch.testing.assert_close(ours.decode(latents), decoded, rtol=1e-4, atol=1e-5)


def test_autoencoder_of_another_model(tmp_path):
    from realisr.training.flux.autoencoder import load_autoencoder

    state = checkpoints.fill(checkpoints.autoencoder_kl_shapes(4, 32, 32), 0)
    save_file(state, tmp_path / "sd.safetensors")
    with pytest.raises(ValueError, match="its latents have 4 channels, FLUX's 16"):
        load_autoencoder(tmp_path / "sd.safetensors", META, torch.float32)


# --- encoders --------------------------------------------------------------------------------------------------------


def test_t5_and_clip_in_both_layouts(tmp_path):
    """ComfyUI's single files and the folders transformers writes hold the same networks."""
    makers = {"T5": tiny_t5, "CLIP_TEXT": tiny_clip_text, "CLIP_VISION": tiny_clip_vision}
    for kind, make in makers.items():
        state = make()
        save_file(state, tmp_path / f"{kind}.safetensors")
        network = load_encoder(kind, tmp_path / f"{kind}.safetensors")
        network.save_pretrained(tmp_path / kind)
        again = load_encoder(kind, tmp_path / kind)
        found = again.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in network.state_dict().items())
        assert not any(value.requires_grad for value in network.parameters())
    assert load_encoder("T5", tmp_path / "T5").config.num_heads == 4
    assert load_encoder("CLIP_VISION", tmp_path / "CLIP_VISION").config.image_size == 56


def test_the_other_half_of_clip_is_left(tmp_path):
    """clip_l files carry a projection and a logit scale that FLUX does not read."""
    extra = {"text_projection.weight": torch.zeros(4, POOLED), "logit_scale": torch.zeros(())}
    save_file(tiny_clip_text() | extra, tmp_path / "clip_l.safetensors")
    assert load_encoder("CLIP_TEXT", tmp_path / "clip_l.safetensors").config.hidden_size == POOLED


def test_an_encoder_in_place_of_another(tmp_path):
    save_file(tiny_clip_text(), tmp_path / "clip_l.safetensors")
    with pytest.raises(ValueError, match=r"is not a T5 1.1 text encoder: it lacks .*It looks like a CLIP text encoder"):
        load_encoder("T5", tmp_path / "clip_l.safetensors")


def text_encoders(folder: Path, tokenizers: Path, tokens: int = 12) -> Any:
    from realisr.training.flux.encoders import TextEncoders

    save_file(tiny_t5(), folder / "t5.safetensors")
    save_file(tiny_clip_text(), folder / "clip.safetensors")
    paths = (folder / "t5.safetensors", folder / "clip.safetensors", tokenizers)
    return TextEncoders(*paths, CPU, torch.float32, tokens, CPU)


def test_prompts(comfyui, tmp_path, caplog):
    """Padding is read like words; a prompt alone and among others gives the same; what is cut is said."""
    encoders = text_encoders(tmp_path, comfyui.comfyui)
    prompts = ["a grey cat", "", "stone by stone " * 10]
    text, pooled = encoders.encode(prompts)
    assert text.shape == (3, 12, TEXT) and pooled.shape == (3, POOLED)
    clip_ids, t5_ids = encoders.tokenizers.ids(prompts, 12)
    # CLIP: begin, end, and padding that is the end again. T5: end, then zeros.
    assert clip_ids[1].tolist() == [49406, *[49407] * 76] and t5_ids[1].tolist() == [1, *[0] * 11]
    alone, pooled_alone = encoders.encode(prompts[:1])
    torch.testing.assert_close(alone, text[:1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled_alone, pooled[:1], rtol=1e-4, atol=1e-5)
    assert "T5 tokens, 12 are used: stone by stone" in caplog.text


def test_tokenizers_of_another_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizers\. Name ComfyUI's folder"):
        text_encoders(tmp_path, tmp_path)


def test_image_embeddings(tmp_path):
    """CLIP's own preparation and network by transformers, at a size that needs no resampling."""
    from realisr.training.flux.encoders import ImageEncoder

    save_file(tiny_clip_vision(), tmp_path / "vision.safetensors")
    network = load_encoder("CLIP_VISION", tmp_path / "vision.safetensors")
    levels = torch.randint(0, 256, (2, 3, 56, 56)).float() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.no_grad():
        expected = network(pixel_values=(levels - mean) / std).image_embeds
    encoder = ImageEncoder(network)
    torch.testing.assert_close(encoder.encode(levels), expected, rtol=1e-4, atol=1e-5)
    assert encoder.width == EMBEDDING and encoder.encode(torch.rand(1, 3, 33, 70)).shape == (1, EMBEDDING)
