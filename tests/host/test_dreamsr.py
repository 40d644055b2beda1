"""DreamSR Restore: the whole method, against the separate nodes wired by hand, and what it does with any image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import checkpoints
from harness.dreamsr import control_weights, load_flux, save_control

TEXT, POOLED = 32, 768


@pytest.fixture(scope="module")
def model(host) -> Any:
    weights = checkpoints.flux(7, double_blocks=2, single_blocks=1, context_width=TEXT, pooled_width=POOLED)
    return load_flux(host, "dreamsr_node_flux.safetensors", weights)


@pytest.fixture(scope="module")
def vae(host) -> Any:
    import nodes

    name = host.save_model("vae", "dreamsr_taesd.safetensors", checkpoints.taesd())
    return host.run(nodes.VAELoader, vae_name=name)[0]


@pytest.fixture(scope="module")
def control(host) -> Any:
    from realisr.nodes.dreamsr_control import LoadMMControlNet

    name = save_control(host, "dreamsr_node.safetensors", control_weights())
    return host.run(LoadMMControlNet, control_name=name, weight_dtype="fp32")[0]


@pytest.fixture(scope="module")
def lora(host) -> str:
    def shapes() -> checkpoints.Shapes:
        yield "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", (4, 256)
        yield "transformer.transformer_blocks.0.attn.to_q.lora_B.weight", (256, 4)

    return host.save_model("loras", "dreamsr_node_lora.safetensors", checkpoints.fill(shapes(), 9))


def text(seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    tokens, pooled = torch.randn(1, 5, TEXT, generator=generator), torch.randn(1, POOLED, generator=generator)
    return [[tokens, {"pooled_output": pooled, "guidance": 3.5}]]


def picture(height: int = 24, width: int = 36, channels: int = 3, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(height + width + channels)
    coarse = torch.rand(batch, channels, 5, 5, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return image.clamp(0, 1).movedim(1, -1)


def run(host, model, vae, image: Tensor, lora_name: str = "none", **changes: Any) -> Tensor:
    from realisr.nodes.dreamsr import DreamSRRestore

    single = {
        "model": model,
        "vae": vae,
        "image": image,
        "positive": text(1),
        "lora_name": lora_name,
        "tile_size": 64,
        "overlap": 32,
        "weights": "uniform",
        "texture_start": 0.8,
        "texture_steps": 3,
        "seed": 5,
        "color_alignment": "none",
        "control_strength": 1.0,
        "lora_strength": 1.0,
        "tiles_per_batch": 0,
        "vae_tile_size": 0,
    } | changes
    resize = single.pop("resize", {"resize": "scale factor", "scale": 4.0})
    patch_prompts = single.pop("patch_prompts", None)
    as_lists = {name: [value] for name, value in single.items()}
    return host.run(
        DreamSRRestore,
        resize={name: [value] for name, value in resize.items()},
        patch_prompts=patch_prompts,
        **as_lists,
    )[0]


def test_equals_the_separate_nodes(host, model, vae, control, lora):
    """Wired as the workflow wires them: two tiled guiders, one looking at the LQ latent and one at the clean one."""
    import nodes
    from comfy_extras.nodes_custom_sampler import KSamplerSelect, RandomNoise, SamplerCustomAdvanced

    from realisr.nodes.dreamsr import AccelerationLoRAStep
    from realisr.nodes.dreamsr_control import ApplyMMControlNet
    from realisr.nodes.image import UpscaleForRestoration
    from realisr.nodes.tiles import TiledMultiDiffusionGuider, TileGridNode

    image = picture()
    (large,) = host.run(UpscaleForRestoration, image=image, resize={"resize": "scale factor", "scale": 4.0})
    grid, _, count = host.run(TileGridNode, size_of=large, tile_size=64, overlap=32, align=2)
    patches = [text(100 + tile) for tile in range(count)]
    (latent,) = host.run(nodes.VAEEncode, pixels=large, vae=vae)

    def guider(seen):
        patched, positive, _ = host.run(
            ApplyMMControlNet,
            model=model,
            mm_controlnet=control,
            positive=text(1),
            latent=seen,
            strength=1.0,
            start_percent=0.0,
            end_percent=1.0,
            text_branch=True,
        )
        return host.run(
            TiledMultiDiffusionGuider,
            model=[patched],
            positive=[positive],
            cfg=[1.0],
            tile_grid=[grid],
            weights=["gaussian"],
            tiles_per_batch=[2],
            true_positions=[False],
            patch_prompts=patches,
            patch_prompt_reader=["auto"],
        )[0]

    clean, sigmas = host.run(
        AccelerationLoRAStep,
        guider=guider(latent),
        latent=latent,
        lora_name=lora,
        strength=1.0,
        texture_start=0.8,
        texture_steps=3,
        shift=1.0,
        removal_time=1.0,
    )
    _, denoised = host.run(
        SamplerCustomAdvanced,
        noise=host.run(RandomNoise, noise_seed=5)[0],
        guider=guider(clean),
        sampler=host.run(KSamplerSelect, sampler_name="euler")[0],
        sigmas=sigmas,
        latent_image=clean,
    )
    (wired,) = host.run(nodes.VAEDecode, samples=denoised, vae=vae)
    whole = run(
        host,
        model,
        vae,
        image,
        lora,
        mm_controlnet=control,
        tile_grid=grid,
        patch_prompts=patches,
        weights="gaussian",
        tiles_per_batch=2,
    )
    assert count > 4
    assert whole.shape == wired.shape == (1, 96, 144, 3)
    assert whole.std() > 0.01
    assert (whole - wired).abs().max() < 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"lora_name": "none"},
        {"mm_controlnet": None},
        {"patch_prompts": None},
        {"texture_start": 0.5},
        {"seed": 6},
        {"positive": text(2)},
    ],
)
def test_every_part_has_a_say(host, model, vae, control, lora, change):
    """The paper's ablations are one wire or widget each."""
    full = {
        "lora_name": lora,
        "mm_controlnet": control,
        "patch_prompts": [text(seed) for seed in range(2)],
        "image": picture(16, 24),
    }
    image = full.pop("image")
    one = run(host, model, vae, image, **full)
    other = run(host, model, vae, image, **(full | change))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize(("height", "width"), [(7, 11), (16, 16), (33, 9)])
def test_any_size_and_alpha(host, model, vae, lora, height, width):
    image = picture(height, width, channels=4)
    result = run(host, model, vae, image, lora, resize={"resize": "scale factor", "scale": 3.0})
    assert result.shape == (1, 3 * height, 3 * width, 4)
    assert torch.isfinite(result).all()
    plain = run(host, model, vae, image[..., :3], lora, resize={"resize": "scale factor", "scale": 3.0})
    assert torch.equal(result[..., :3], plain)
    mask = 1 - image[..., 3]
    masked = run(host, model, vae, image[..., :3], lora, resize={"resize": "scale factor", "scale": 3.0}, mask=mask)
    assert torch.equal(masked, result), "Load Image's mask says the same"


def test_a_preset_takes_the_place_of_the_widget_it_sets(host, model, vae):
    from realisr.models.presets import DREAMSR, PRESETS, TABLE

    for preset, start in zip(PRESETS, TABLE[DREAMSR]["texture_start"], strict=True):
        chosen = run(host, model, vae, picture(8, 8), preset=preset, texture_start=0.3)
        assert torch.equal(chosen, run(host, model, vae, picture(8, 8), texture_start=start))


def test_items_of_a_batch_are_what_they_are_alone(host, model, vae, lora):
    images = picture(12, 16, batch=2)
    both = run(host, model, vae, images, lora)
    for index in range(2):
        alone = run(host, model, vae, images[index : index + 1], lora, seed=5 + index)
        assert (both[index] - alone[0]).abs().max() < 1e-5


def test_a_grid_of_another_size_is_refused(host, model, vae):
    from realisr.models.tiles.layout import TileLayout

    with pytest.raises(ValueError, match=r"tile grid is for 128x128 pixels, the result is 144x96\. Give Tile Grid"):
        run(host, model, vae, picture(), tile_grid=TileLayout.fitted(128, 128, 64, 32))


def test_the_number_of_patch_prompts_is_checked(host, model, vae):
    with pytest.raises(ValueError, match=r"DreamSR Restore: got 2 .* for 8 tiles"):
        run(host, model, vae, picture(), patch_prompts=[text(1), text(2)])


def test_a_list_of_images_is_refused_with_a_remedy(host, model, vae):
    from realisr.nodes.inputs import only

    with pytest.raises(ValueError, match=r"image got a list of 2.*Rebatch Images"):
        only("DreamSR Restore", "image", [picture(), picture()])


def test_memory_is_asked_for_tiles_and_their_control(host, model, control, monkeypatch):
    """A tile's features are part of the estimate, whichever of control and tiling was put on the model first."""
    import comfy.samplers
    from comfy.patcher_extension import WrappersMP

    from realisr.host.dreamsr.control.apply import apply_mm_control
    from realisr.host.dreamsr.control.conditioning import ApplyOptions
    from realisr.host.tiling.sampling import Tiling
    from realisr.models.tiles.grid import TileGrid

    latent = torch.randn(1, 16, 32, 32)
    patched, positive, _ = apply_mm_control(model, control, text(1), None, {"samples": latent}, None, ApplyOptions())
    asked = []

    def watch(executor, model, noise_shape, *args, **kwargs):
        asked.append(list(noise_shape))
        return executor(model, noise_shape, *args, **kwargs)

    tiled = Tiling(TileGrid(32, 32, 8, 8, 0), per_forward=2).apply(patched)
    tiled.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "watch", watch)
    guider = comfy.samplers.CFGGuider(tiled)
    guider.inner_set_conds({"positive": positive})
    with torch.inference_mode():
        guider.sample(
            torch.randn(1, 16, 32, 32),
            latent,
            comfy.samplers.sampler_object("euler"),
            torch.tensor([0.8, 0.0]),
            disable_pbar=True,
            seed=0,
        )
    ((batch, _, height, width),) = asked
    bare, canvas = 2 * 8 * 8, 32 * 32
    assert bare < batch * height * width < canvas


@pytest.mark.parametrize("choice", ["rerun with another seed", "rerun with less creativity"])
def test_only_bad_tiles_are_restored_again(host, model, vae, control, monkeypatch, choice):
    """The check stands in, so that a random model has exactly one bad tile; what is done about it is the node's own."""
    from realisr.host import tile_repair
    from realisr.host.dreamsr import restore as method
    from realisr.models.tile_check.check import Fault, TileCheck

    prompts = [text(100 + tile) for tile in range(8)]
    settings = {"mm_controlnet": control, "patch_prompts": prompts, "weights": "gaussian"}
    once = run(host, model, vae, picture(), **settings)
    verdicts, runs = [[5], []], []
    whole = method.ItemRun.restore

    def check(restored, lq, grid, scale, thresholds):
        bad = verdicts.pop(0)
        return TileCheck(grid, [[Fault("color", 99.0, 24.0)] if tile in bad else [] for tile in range(len(grid))])

    def watched(self, rgb, seen=None):
        runs.append((self.seed, self.method.texture_start, tuple(rgb.shape[1:3]), len(self.method.patch_prompts)))
        return whole(self, rgb, seen)

    monkeypatch.setattr(tile_repair, "check_tiles", check)
    monkeypatch.setattr(method.ItemRun, "restore", watched)
    mended = run(host, model, vae, picture(), tile_check=choice, **settings)
    start = 0.8 * 0.8 if choice.endswith("creativity") else 0.8
    # Tile 5 of 2 x 4 lies at rows 32 to 96 and columns 32 to 96; the ring around it is 32 pixels wide.
    assert runs == [(5, 0.8, (96, 144), 8), (6, pytest.approx(start), (96, 128), 6)]
    assert torch.equal(once[:, :, 128:], mended[:, :, 128:])
    assert (once - mended)[:, 32:, 32:96].abs().max() > 1e-3


def test_models_of_another_family_are_refused_in_words(host, model, vae, multi_step):
    """Before anything is computed: what is connected where, and which loader to use instead."""
    from realisr.host.vosr.vae import load_vosr_vae

    fill = load_flux(host, "dreamsr_node_fill.safetensors", checkpoints.flux(fill_model=True))
    advice = r" is connected to model\. Connect Load Diffusion Model with flux1-dev\.safetensors\."
    with pytest.raises(ValueError, match=r"DreamSR Restore needs FLUX\.1-dev, and FLUX\.1 Fill" + advice):
        run(host, fill, vae, picture())
    with pytest.raises(ValueError, match=rf"and the VOSR model {multi_step.name}" + advice):
        run(host, multi_step.load(), vae, picture())
    pixels = load_vosr_vae("pixel unshuffle x2 (no file)")
    with pytest.raises(ValueError, match=r"the connected vae makes 12: it is pixel unshuffle .* Connect Load VAE with"):
        run(host, model, pixels, picture())


def test_an_overlap_of_a_whole_tile_is_refused_before_the_run(host):
    from realisr.nodes.dreamsr import DreamSRRestore

    check = DreamSRRestore.validate_inputs
    assert check([512], [128]) is True
    assert "overlap" in check([512], [512])
    assert check([512], [512], tile_grid=(None,)) is True, "a connected grid takes their place"
    assert check((None,), [512]) is True, "what comes over a wire is not known yet"
