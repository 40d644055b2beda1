"""What a user gets told when a file or an input is not what it should be."""

from __future__ import annotations

import json
import re

import pytest
import torch

from harness import checkpoints
from harness.autoencoders import qwen_vae, sd21_vae
from harness.host import InProcessHost
from harness.vosr import TinyVOSR


def load(name: str):
    from realisr.nodes.vosr_loaders import LoadVOSRModel

    return InProcessHost.run(LoadVOSRModel, model_name=name, weight_dtype="default", variant="auto")[0]


WRONG_FILES = {
    "a FLUX diffusion model": lambda: checkpoints.flux(double_blocks=1, single_blocks=1),
    "a DINOv2 encoder (hub naming)": checkpoints.dinov2,
    "a DINOv2 encoder (transformers naming)": lambda: checkpoints.dinov2_hf(checkpoints.dinov2()),
    "a KL autoencoder (latent-diffusion naming)": sd21_vae,
    "a Qwen-Image VAE": qwen_vae,
    "a TAESD preview decoder": checkpoints.taesd,
    "a LoRA": lambda: {"diffusion_model.blocks.0.attn.qkv.lora_A.weight": torch.zeros(4, 64)},
    "a file unknown to this pack (1 entries, such as strange)": lambda: {"strange": torch.zeros(1)},
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_another_models_file(host, kind):
    name = host.save_model("diffusion_models", "another.safetensors", WRONG_FILES[kind]())
    with pytest.raises(ValueError, match=r"another\.safetensors is not a VOSR diffusion model: it lacks ") as error:
        load(name)
    assert f"It looks like {kind}." in str(error.value)
    assert "args.json + checkpoints/ema_model.safetensors" in str(error.value)


def test_truncated_file(host, multi_step):
    content = multi_step.weight_file.read_bytes()
    for share in (0.5, 0.001):
        (host.models / "diffusion_models" / "cut.safetensors").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read: it is damaged or incomplete \([\d,]+ "):
            load("cut.safetensors")


def test_empty_file(host):
    (host.models / "diffusion_models" / "nothing.safetensors").touch()
    with pytest.raises(ValueError, match=r"nothing\.safetensors is empty \(0 bytes\)"):
        load("nothing.safetensors")


class RunsCode:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


def test_pickle_with_code(host, tmp_path):
    trace = tmp_path / "it_ran"
    torch.save({"x_embedder.proj.weight": RunsCode(trace)}, host.models / "diffusion_models" / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth is a pickle that runs code when opened .* was not opened"):
        load("evil.pth")
    assert not trace.exists()


def test_missing_tensors(host, multi_step):
    weights = {k: v for k, v in multi_step.weights.items() if ".attn.proj." not in k}
    weights["surplus.weight"] = torch.zeros(2)
    weights["t_block.1.bias"] = torch.zeros(7)
    name = host.save_model("diffusion_models", "lacking.safetensors", weights)
    with pytest.raises(ValueError, match=r"lacking\.safetensors does not fit a VOSR diffusion model") as error:
        load(name)
    message = str(error.value)
    assert "missing blocks.0.attn.proj.weight, blocks.0.attn.proj.bias" in message and "and 3 more" in message
    assert "unexpected surplus.weight" in message
    assert "t_block.1.bias is [7], expected [384]" in message


@pytest.fixture
def folder(host, request, multi_step) -> TinyVOSR:
    """An official folder of its own, to spoil."""
    return TinyVOSR.create(host, re.sub(r"\W", "_", request.node.name))


def test_folder_without_weights(folder):
    folder.weight_file.unlink()
    with pytest.raises(ValueError, match=r"has an args\.json but no weights\. Looked for .*checkpoints/ema_model"):
        load(folder.name)


def test_args_of_another_model(folder):
    args = checkpoints.vosr_args(folder.config) | {"dim": 1536, "ae_type": "qwen"}
    (folder.folder / "args.json").write_text(json.dumps(args))
    with pytest.raises(ValueError, match=r"args\.json does not belong to these weights") as error:
        load(folder.name)
    assert "dim is 1536 in args.json but 64 in the tensors" in str(error.value)
    assert "'qwen' means 16 latent channels in args.json but the tensors have 4" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{ dim: 64", r"args\.json is not valid JSON .*Download it again"),
        (b"\xff\xfe{}", r"args\.json is not valid JSON"),
        (b"[1, 2]", r"args\.json holds a list, not a table of settings"),
    ],
)
def test_args_that_are_no_table(folder, content, message):
    (folder.folder / "args.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(folder.name)


def test_latent_space_nobody_knows(host):
    strange = TinyVOSR.create(host, "strange_space", latent_channels=8)
    (strange.folder / "args.json").unlink()
    name = host.save_model("diffusion_models", "strange_space.safetensors", strange.weights)
    with pytest.raises(ValueError, match=r"has 8 latent channels; known are 4 \(SD 2\.1 VAE\) and 16"):
        load(name)


def test_the_weight_file_of_a_folder_is_the_folder(folder):
    """What the frontend's search for missing models takes for a model's name, and the name older workflows hold."""
    from realisr.host.vosr.files import find_model, model_choices

    (folder.folder / "args.json").write_text(
        json.dumps(checkpoints.vosr_args(folder.config) | {"distill_type": "rcgm"})
    )
    by_file = f"{folder.name}/checkpoints/ema_model.safetensors"
    assert {folder.name, by_file} <= set(model_choices())
    assert find_model(by_file).path == find_model(folder.name).path
    assert find_model(by_file).args == find_model(folder.name).args
    models = [load(name).model.model_config.info for name in (folder.name, by_file)]
    assert [info.one_step for info in models] == [True, True], "args.json is read in both forms"


def test_file_that_is_gone(host, folder):
    folder.weight_file.unlink()
    (folder.folder / "args.json").unlink()
    with pytest.raises(FileNotFoundError):
        load(folder.name)


# --- inputs of the nodes ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae(host):
    from realisr.host.vosr.vae import load_vosr_vae

    return load_vosr_vae(host.save_model("vae", "bad_input_sd21.safetensors", sd21_vae()))


@pytest.fixture(scope="module")
def vision(host):
    from realisr.host.vosr.vision import load_vision_encoder

    return load_vision_encoder(host.save_model("clip_vision", "bad_input_dinov2.safetensors", checkpoints.dinov2()))


def restore(model, vae, image, vision=None, resize=None, tiling=None):
    from realisr.nodes.vosr import RestorationCFGSampler

    return InProcessHost.run(
        RestorationCFGSampler,
        model=model,
        vae=vae,
        image=image,
        vision_encoder=vision,
        resize=resize or {"resize": "scale factor", "scale": 1.0},
        steps=1,
        restoration_scale=0.5,
        seed=0,
        color_alignment="adain",
        tiling=tiling or {"tiling": "off"},
        weak_strength=0.15,
        guidance_start=0.0,
        guidance_end=1.0,
        posterior="mean",
        vae_tile_size=0,
    )


def condition(vae, image, vision=None, tile_size=0, tile_overlap=0):
    from realisr.nodes.vosr import VOSRConditioning

    return InProcessHost.run(
        VOSRConditioning,
        image=image,
        vae=vae,
        vision_encoder=vision,
        weak_strength=0.15,
        tile_size=tile_size,
        tile_overlap=tile_overlap,
        posterior="mean",
        seed=0,
        vae_tile_size=0,
    )


GREY = torch.full((1, 16, 16, 3), 0.5)


def test_missing_vision_encoder(multi_step, vae):
    with pytest.raises(ValueError, match=r"vision features 24 wide: connect Load VOSR Vision Encoder"):
        restore(multi_step.load(), vae, GREY)


def test_vae_of_the_wrong_family(multi_step, qwen_space, vae, vision):
    from realisr.host.vosr.vae import PIXEL_UNSHUFFLE, load_vosr_vae

    with pytest.raises(ValueError, match=r"works in latents of 4 channels, this VAE makes 12\. Use the SD 2\.1 VAE"):
        restore(multi_step.load(), load_vosr_vae(PIXEL_UNSHUFFLE), GREY, vision)
    with pytest.raises(ValueError, match=r"works in latents of 16 channels, this VAE makes 4\. .*Qwen-Image VAE"):
        restore(qwen_space.load(), vae, GREY, vision)


def test_model_that_is_no_vosr(host, multi_step, vae):
    import nodes

    from realisr.nodes.vosr import RestorationCFGGuider

    name = host.save_model("diffusion_models", "flux.safetensors", checkpoints.flux(double_blocks=1, single_blocks=1))
    (flux,) = host.run(nodes.UNETLoader, unet_name=name, weight_dtype="default")
    with pytest.raises(
        ValueError, match=r"needs a VOSR model, and FLUX\.1 is connected to model\. Connect Load VOSR Model"
    ):
        restore(flux, vae, GREY)
    with pytest.raises(ValueError, match=r"needs a VOSR model, and FLUX"):
        host.run(
            RestorationCFGGuider,
            model=flux,
            full=[],
            weak=[],
            restoration_scale=0.5,
            guidance_start=0.0,
            guidance_end=1.0,
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_numbers(multi_step, vae, vision, value):
    image = GREY.clone()
    image[0, 3, 4, 1] = value
    for call in (lambda: restore(multi_step.load(), vae, image, vision), lambda: condition(vae, image, vision)):
        with pytest.raises(ValueError, match=r"The image holds 1 values that are not numbers \(NaN or infinite\)"):
            call()


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_numbers_of_channels(multi_step, vae, vision, channels):
    image = torch.zeros(1, 16, 16, channels)
    message = rf"Expected images \[batch, height, width, 3 or 4 channels\], got \[1, 16, 16, {channels}\]"
    for call in (lambda: restore(multi_step.load(), vae, image, vision), lambda: condition(vae, image, vision)):
        with pytest.raises(ValueError, match=message):
            call()


def test_four_channels_are_conditioned_on_without_alpha(vae, vision):
    image = torch.rand(1, 16, 16, 4)
    with_alpha, without = condition(vae, image, vision), condition(vae, image[..., :3], vision)
    assert torch.equal(with_alpha[0][0][0], without[0][0][0])
    assert torch.equal(with_alpha[0][0][1]["concat_latent_image"], without[0][0][1]["concat_latent_image"])


def test_no_image(multi_step, vae, vision):
    with pytest.raises(ValueError, match=r"Expected images .* got \[0, 16, 16, 3\]"):
        restore(multi_step.load(), vae, GREY[:0], vision)


@pytest.mark.parametrize(
    ("resize", "message"),
    [
        (
            {"resize": "scale factor", "scale": 8.0},
            r"be 32768x128 pixels; the longest side allowed is 16384.*is 4096x16",
        ),
        ({"resize": "target size", "width": 16384, "height": 0}, None),
        ({"resize": "target size", "width": 0, "height": 128}, r"would be 32768x128 pixels"),
        ({"resize": "target size", "width": 0, "height": 0}, r"Give a target width, a height, or both"),
    ],
)
def test_huge_scales(multi_step, vae, vision, resize, message):
    from realisr.nodes.image import UpscaleForRestoration
    from realisr.nodes.inputs import target_size

    wide = torch.zeros(1, 16, 4096, 3)
    if message is None:
        assert target_size(wide, resize) == (16384, 64)
        return
    for call in (
        lambda: restore(multi_step.load(), vae, wide, vision, resize),
        lambda: InProcessHost.run(UpscaleForRestoration, image=wide, resize=resize),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(("size", "overlap"), [(64, 64), (64, 100)])
def test_overlap_of_a_whole_tile(multi_step, vae, vision, size, overlap):
    from realisr.nodes.vosr import VOSRConditioning

    message = rf"The overlap must be at least 0 and smaller than the tile size {size} px, got {overlap} px"
    assert re.match(message, VOSRConditioning.validate_inputs(tile_size=size, tile_overlap=overlap))
    with pytest.raises(ValueError, match=message):
        condition(vae, GREY, vision, size, overlap)
    with pytest.raises(ValueError, match=message):
        restore(
            multi_step.load(),
            vae,
            GREY,
            vision,
            tiling={"tiling": "custom", "tile_size": size, "tile_overlap": overlap},
        )
    assert VOSRConditioning.validate_inputs(tile_size=64, tile_overlap=8) is True
