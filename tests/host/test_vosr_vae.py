"""VOSR's autoencoders in the host: loading, core encode and decode nodes, posterior, and errors on wrong files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness import checkpoints
from harness.autoencoders import light_decoder, qwen_vae, randomised, sd21_vae

FORMATS = Path(__file__).resolve().parents[1] / "formats"
LEGACY_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def meta_tensors(name: str) -> dict[str, torch.Tensor]:
    shapes = json.loads((FORMATS / f"{name}.keys.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def files(host):
    """Names of small autoencoder files in models/vae."""
    names = {
        "sd": host.save_model("vae", "tiny_sd21.safetensors", sd21_vae()),
        "qwen": host.save_model("vae", "tiny-qwen/diffusion_pytorch_model.safetensors", qwen_vae()),
        "light": "tiny_lwdecoder.pth",
    }
    torch.save(light_decoder(), host.models / "vae" / names["light"])
    return names


@pytest.fixture(scope="module")
def vaes(files):
    from realisr.host.vosr.vae import PIXEL_UNSHUFFLE, load_vosr_vae

    return {
        "sd": load_vosr_vae(files["sd"]),
        "light": load_vosr_vae(files["sd"], files["light"]),
        "qwen": load_vosr_vae(files["qwen"]),
        "pixel": load_vosr_vae(PIXEL_UNSHUFFLE),
    }


KINDS = {"sd": (4, 8), "light": (4, 8), "qwen": (16, 8), "pixel": (12, 2)}


def pictures(batch: int = 2, height: int = 48, width: int = 64, channels: int = 3) -> torch.Tensor:
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(3))


def test_choices_are_the_files_and_what_needs_none(files):
    from realisr.host.vosr.vae import NO_DECODER, PIXEL_UNSHUFFLE, decoder_choices, vae_choices

    assert vae_choices()[0] == PIXEL_UNSHUFFLE
    assert decoder_choices()[0] == NO_DECODER
    assert set(files.values()) <= set(vae_choices()) & set(decoder_choices())


@pytest.mark.parametrize("kind", KINDS)
def test_core_nodes_encode_and_decode(host, vaes, kind):
    import nodes

    channels, downscale = KINDS[kind]
    (latent,) = host.run(nodes.VAEEncode, vae=vaes[kind], pixels=pictures())
    assert latent["samples"].shape == (2, channels, 48 // downscale, 64 // downscale)
    assert latent["samples"].dtype == torch.float32
    (image,) = host.run(nodes.VAEDecode, vae=vaes[kind], samples=latent)
    assert image.shape == (2, 48, 64, 3)
    assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_core_tiled_nodes(host, vaes, kind):
    import nodes

    pixels = pictures(1, 128, 192)
    (whole,) = host.run(nodes.VAEEncode, vae=vaes[kind], pixels=pixels)
    (tiled,) = host.run(nodes.VAEEncodeTiled, vae=vaes[kind], pixels=pixels, tile_size=128, overlap=32)
    assert tiled["samples"].shape == whole["samples"].shape
    correlation = torch.corrcoef(torch.stack([tiled["samples"].flatten(), whole["samples"].flatten()]))[0, 1]
    assert correlation > 0.95
    (image,) = host.run(nodes.VAEDecodeTiled, vae=vaes[kind], samples=whole, tile_size=128, overlap=32)
    (expected,) = host.run(nodes.VAEDecode, vae=vaes[kind], samples=whole)
    assert image.shape == expected.shape
    assert torch.corrcoef(torch.stack([image.flatten(), expected.flatten()]))[0, 1] > 0.9


def test_pixel_unshuffle_is_exact(vaes):
    pixels = pictures()
    torch.testing.assert_close(vaes["pixel"].decode(vaes["pixel"].encode(pixels)), pixels, atol=1e-6, rtol=0)
    assert vaes["pixel"].encode(pixels).abs().max() <= 1


def test_light_decoder_shares_the_encoder(vaes):
    pixels = pictures()
    with torch.inference_mode():
        latent = vaes["light"].encode(pixels)
        assert torch.equal(latent, vaes["sd"].encode(pixels))
        assert not torch.allclose(vaes["light"].decode(latent), vaes["sd"].decode(latent), atol=1e-2)


def test_the_hosts_own_loader_agrees_on_sd21(host):
    """The full-width encoder, which is all the host can build, gives the same latents and images."""
    import nodes

    from realisr.host.vosr.vae import load_vosr_vae

    name = host.save_model("vae", "wide_sd21.safetensors", checkpoints.autoencoder_kl(decoder_width=32))
    (expected,) = host.run(nodes.VAELoader, vae_name=name)
    ours = load_vosr_vae(name)
    pixels = pictures(1, 32, 32)
    with torch.inference_mode():
        latent = expected.encode(pixels)
        torch.testing.assert_close(ours.encode(pixels), latent, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.decode(latent), expected.decode(latent), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_single_frames_of_the_video_vae(tmp_path, host):
    """Wan naming, as the Qwen-Image VAE is usually shared, against the host's own video network."""
    from comfy.ldm.wan.vae import WanVAE

    from realisr.host.vosr.vae import load_vae_files, posterior_of

    video = WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True]).eval()
    video.load_state_dict(randomised(video))
    save_file(video.state_dict(), tmp_path / "qwen_image_vae.safetensors")
    vae = load_vae_files(tmp_path / "qwen_image_vae.safetensors")

    pixels, latent = pictures(2), torch.randn(2, 16, 6, 8)
    posterior = posterior_of(video)((pixels.movedim(-1, 1) * 2 - 1)[:, :, None])[:, :, 0]
    torch.testing.assert_close(
        posterior_of(vae.first_stage_model)(pixels.movedim(-1, 1) * 2 - 1), posterior, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(vae.encode(pixels), posterior[:, :16], atol=1e-5, rtol=0)
    expected = (video.decode(latent[:, :, None])[:, :, 0].clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(vae.decode(latent).movedim(-1, 1), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_posterior_mean_is_what_the_host_encodes(vaes, kind):
    from realisr.host.vosr.vae import encode_moments

    pixels = pictures(1, 96, 128)
    mean, logvar = encode_moments(vaes[kind], pixels)
    torch.testing.assert_close(mean, vaes[kind].encode(pixels), atol=1e-6, rtol=0)
    assert logvar.shape == mean.shape
    assert (logvar == -30).all() == (kind == "pixel")
    mean, logvar = encode_moments(vaes[kind], pixels, vae_tile=64)
    torch.testing.assert_close(
        mean, vaes[kind].encode_tiled(pixels, tile_x=64, tile_y=64, overlap=8), atol=1e-6, rtol=0
    )
    assert logvar.shape == mean.shape


@torch.inference_mode()
def test_out_of_memory_falls_back_to_tiles(vaes, monkeypatch):
    from realisr.host.vosr import vae as module

    vae, pixels, calls = vaes["sd"], pictures(1, 32, 640), []
    expected, _ = module.encode_moments(vae, pixels, vae_tile=512)
    posterior = module.posterior_of(vae.first_stage_model)

    def short_of_memory(model):
        def encode(x):
            calls.append(tuple(x.shape[-2:]))
            if len(calls) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return posterior(x)

        return encode

    monkeypatch.setattr(module, "posterior_of", short_of_memory)
    mean, _ = module.encode_moments(vae, pixels)
    assert calls[0] == (32, 640) and (32, 512) in calls
    assert torch.equal(mean, expected)
    assert vae.first_stage_model.encode(pixels.movedim(-1, 1)).shape[1] == 4, "the VAE itself is as it was"


def test_posterior_of_the_hosts_own_video_vae(host):
    """Loaded by the core loader, the 3D Qwen-Image VAE serves as well."""
    import nodes
    from comfy.ldm.wan.vae import WanVAE

    from realisr.host.images import encode_image
    from realisr.host.vosr.vae import encode_moments

    state_dict = randomised(WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True]))
    name = host.save_model("vae", "tiny_wan.safetensors", state_dict)
    (vae,) = host.run(nodes.VAELoader, vae_name=name)
    with torch.inference_mode():
        mean, logvar = encode_moments(vae, pictures(1))
        assert mean.shape == logvar.shape == (1, 16, 6, 8)
        torch.testing.assert_close(mean, vae.encode(pictures(1))[:, :, 0], atol=1e-5, rtol=0)
        assert encode_moments(vae, pictures(1, 96, 96), vae_tile=64)[0].shape == (1, 16, 12, 12)
        with pytest.raises(ValueError, match=r"makes video latents \[1, 16, 1, 6, 8\]"):
            encode_image(vae, pictures(1))


def test_a_vae_without_posterior_is_refused(host):
    import nodes

    from realisr.host.vosr.vae import encode_moments

    name = host.save_model("vae", "tiny_taesd_4.safetensors", checkpoints.taesd(latent_channels=4))
    (vae,) = host.run(nodes.VAELoader, vae_name=name)
    with pytest.raises(ValueError, match=r"This VAE \(TAESD\) .* no distribution to sample from"):
        encode_moments(vae, pictures(1))


def test_an_image_smaller_than_a_latent_cell_is_refused(vaes):
    from realisr.host.vosr.vae import encode_moments

    with pytest.raises(ValueError, match=r"The image is 4x4, smaller than one latent cell of this VAE \(8 pixels\)"):
        encode_moments(vaes["sd"], pictures(1, 4, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_patcher_can_be_made(vaes, kind):
    """What the host does to put a model on a second device, or out of dynamic memory."""
    patcher = vaes[kind].patcher
    load, arguments = patcher.cached_patcher_init
    fresh = load(*arguments, disable_dynamic=True)
    assert fresh.model is not patcher.model
    for name, value in patcher.model.state_dict().items():
        assert torch.equal(fresh.model.state_dict()[name], value)


def test_it_can_be_saved_and_loaded_again(host, vaes):
    from realisr.host.vosr.vae import load_vosr_vae

    saved = load_vosr_vae(host.save_model("vae", "saved_light.safetensors", vaes["light"].get_sd()))
    with torch.inference_mode():
        latent = saved.encode(pictures(1))
        assert torch.equal(saved.decode(latent), vaes["light"].decode(latent))


@pytest.mark.parametrize("attention", ["to_q", "query"])
@pytest.mark.parametrize("decoder", [None, "vosr_lwdecoder", "vosr_lwdecoder_128"])
def test_released_sd21_tensors_fit_exactly(host, decoder, attention):
    from realisr.host.vosr.autoencoders import checked_kl_settings
    from realisr.host.vosr.vae import kl_tensors, light_decoder_tensors

    tensors = meta_tensors("sd21_vae")
    if attention == "query":
        for new, old in LEGACY_ATTENTION.items():
            tensors = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): t for key, t in tensors.items()}
    widths = (128, 256, 512, 512)
    light = None
    if decoder is not None:
        config = json.loads((FORMATS / f"{decoder}.config.json").read_text())
        content = {"config": config, "model_state_dict": meta_tensors(decoder)}
        light, widths = light_decoder_tensors("sd21_lwdecoder.pth", content), tuple(config["block_out_channels"])
    settings = checked_kl_settings("vae", kl_tensors("vae", tensors, light))
    assert settings["ddconfig"]["ch"] == 128 and settings["ddconfig"]["ch_mult"] == [1, 2, 4, 4]
    assert tuple(settings["decoder_ddconfig"]["ch_mult"]) == widths


def wrong_light_widths() -> dict:
    content = light_decoder()
    return {**content, "config": {**content["config"], "block_out_channels": [32, 32, 32, 32]}}


def without(state_dict: dict[str, torch.Tensor], key: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state_dict.items() if name != key}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (checkpoints.flux, "is not an SD 2.1 or Qwen-Image VAE. It looks like a FLUX diffusion model"),
        (checkpoints.dinov2, "is not an SD 2.1 or Qwen-Image VAE. It looks like a DINOv2 encoder"),
        (lambda: light_decoder()["model_state_dict"], "It is VOSR's light decoder: choose it as decoder"),
        (lambda: checkpoints.taesd(latent_channels=4), "It looks like a TAESD preview decoder"),
        (lambda: without(sd21_vae(), "encoder.mid.attn_1.q.weight"), "missing encoder.mid.attn_1.q.weight"),
        (lambda: {**qwen_vae(), "extra.weight": torch.zeros(1)}, "unexpected extra.weight"),
        (
            lambda: {key: value for key, value in sd21_vae().items() if not key.startswith("decoder.")},
            "holds an encoder only. Choose sd21_lwdecoder.pth as decoder",
        ),
        (
            lambda: checkpoints.fill(checkpoints.autoencoder_kl_shapes(16, 32, 32), 0),
            "is a KL autoencoder with 16 latent channels; the SD 2.1 VAE has 4",
        ),
    ],
)
def test_wrong_vae_files(tmp_path, host, make, message):
    from realisr.host.vosr.vae import load_vae_files

    save_file(make(), tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=message):
        load_vae_files(tmp_path / "wrong.safetensors")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sd21_vae, "wrong.pth is not VOSR's light decoder .* It looks like a KL autoencoder"),
        (checkpoints.dinov2, "wrong.pth is not VOSR's light decoder .* It looks like a DINOv2 encoder"),
        (wrong_light_widths, r"says its widths are \[32, 32, 32, 32\], its tensors have \[32, 64, 32, 32\]"),
    ],
)
def test_wrong_decoder_files(tmp_path, host, files, make, message):
    from realisr.host.vosr.vae import load_vae_files

    torch.save(make(), tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=message):
        load_vae_files(host.models / "vae" / files["sd"], tmp_path / "wrong.pth")


def test_truncated_file(tmp_path, host):
    from realisr.host.vosr.vae import load_vae_files

    path = tmp_path / "cut.safetensors"
    save_file(qwen_vae(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cut.safetensors cannot be read: it is damaged or incomplete"):
        load_vae_files(path)


class RunsCode:
    def __reduce__(self):
        return print, ("opened",)


def test_pickle_with_code(tmp_path, host, files, capsys):
    from realisr.host.vosr.vae import load_vae_files

    torch.save({"model_state_dict": RunsCode()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth is a pickle that runs code when opened"):
        load_vae_files(host.models / "vae" / files["sd"], tmp_path / "evil.pth")
    assert "opened" not in capsys.readouterr().out


def test_a_decoder_that_does_not_go_with_the_vae(files):
    from realisr.host.vosr.vae import PIXEL_UNSHUFFLE, load_vosr_vae

    with pytest.raises(ValueError, match="is a Qwen-Image VAE, which decodes by itself"):
        load_vosr_vae(files["qwen"], files["light"])
    with pytest.raises(ValueError, match="Pixel unshuffle needs no decoder"):
        load_vosr_vae(PIXEL_UNSHUFFLE, files["light"])


def test_other_latent_statistics_beside_the_file(tmp_path, host):
    from realisr.host.vosr.vae import load_vae_files
    from realisr.models.vosr.qwen_vae import LATENTS_MEAN, LATENTS_STD

    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(qwen_vae(), path)
    config = {"latents_mean": list(LATENTS_MEAN), "latents_std": list(LATENTS_STD)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_vae_files(tmp_path).latent_channels == 16
    config["latents_std"][3] = 9.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"states latents_std .* Latents would be normalised wrongly"):
        load_vae_files(tmp_path)
