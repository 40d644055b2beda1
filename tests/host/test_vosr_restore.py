"""The wired graph and the all-in-one node, on images of any size, batch and channels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from harness.autoencoders import sd21_vae
from harness.checkpoints import dinov2
from harness.vosr import CountedCalls, Recorder, Scene, TinyVOSR, run_guider

TOLERANCE = 1e-5
PIXEL_ARGS = {"ae_type": "pixel_unshuffle", "ae_downscale": 2, "ae_scale": 2.0}


@dataclass(frozen=True)
class Parts:
    """What the nodes are given. tile: the size of one training tile in pixels."""

    tiny: TinyVOSR
    model: Any
    vae: Any
    vision: Any
    tile: int


@pytest.fixture(scope="module")
def pixel(host) -> Parts:
    """Of VOSR nano's kind: pixel latents, no vision encoder."""
    from realisr.host.vosr.vae import PIXEL_UNSHUFFLE, load_vosr_vae

    tiny = TinyVOSR.create(host, "tiny_pixel", seed=5, latent_channels=12, context_width=0)
    (tiny.folder / "args.json").write_text(json.dumps(PIXEL_ARGS))
    return Parts(tiny, tiny.load(), load_vosr_vae(PIXEL_UNSHUFFLE), None, 32)


@pytest.fixture(scope="module")
def latent(host, multi_step) -> Parts:
    """Of the 0.5B models' kind: SD 2.1 latents, DINOv2."""
    from realisr.host.vosr.vae import load_vosr_vae
    from realisr.host.vosr.vision import load_vision_encoder

    vae = load_vosr_vae(host.save_model("vae", "restore_sd21.safetensors", sd21_vae()))
    vision = load_vision_encoder(host.save_model("clip_vision", "restore_dinov2.safetensors", dinov2()))
    return Parts(multi_step, multi_step.load(), vae, vision, 128)


def picture(height: int, width: int, batch: int = 1, channels: int = 3) -> torch.Tensor:
    coarse = torch.rand(batch, channels, 5, 5, generator=torch.Generator().manual_seed(height))
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return smooth.clamp(0, 1).movedim(1, -1).contiguous()


def by_factor(scale: float) -> dict[str, Any]:
    return {"resize": "scale factor", "scale": scale}


def in_one_node(host, parts: Parts, image, resize=None, tiling: Any = "off", model=None, **settings):
    """Restoration-CFG Sampler. tiling: "auto", "off" or (size, overlap)."""
    from realisr.nodes.vosr import RestorationCFGSampler

    if isinstance(tiling, tuple):
        chosen = {"tiling": "custom", "tile_size": tiling[0], "tile_overlap": tiling[1]}
    else:
        chosen = {"tiling": tiling}
    defaults = {
        "resize": resize or by_factor(2.0),
        "steps": 2,
        "restoration_scale": 0.5,
        "seed": 42,
        "color_alignment": "adain",
        "weak_strength": 0.15,
        "guidance_start": 0.0,
        "guidance_end": 1.0,
        "posterior": "mean",
        "vae_tile_size": 0,
    }
    (result,) = host.run(
        RestorationCFGSampler,
        model=model or parts.model,
        vae=parts.vae,
        image=image,
        vision_encoder=parts.vision,
        tiling=chosen,
        **(defaults | settings),
    )
    return result


def wired(host, parts: Parts, image, resize=None, tiling=(0, 0), color="adain", posterior="mean", seed=42, steps=2):
    """The same from the separate nodes, the pack's and the host's."""
    import nodes
    from comfy_extras.nodes_custom_sampler import BasicScheduler, KSamplerSelect, RandomNoise, SamplerCustomAdvanced
    from comfy_extras.nodes_images import ImageCrop

    from realisr.nodes.image import AlignColors, UpscaleForRestoration
    from realisr.nodes.vosr import RestorationCFGGuider, VOSRConditioning

    (upscaled,) = host.run(UpscaleForRestoration, image=image, resize=resize or by_factor(2.0))
    full, weak, latent, width, height = host.run(
        VOSRConditioning,
        image=upscaled,
        vae=parts.vae,
        vision_encoder=parts.vision,
        weak_strength=0.15,
        tile_size=tiling[0],
        tile_overlap=tiling[1],
        posterior=posterior,
        seed=seed,
        vae_tile_size=0,
    )
    (guider,) = host.run(
        RestorationCFGGuider,
        model=parts.model,
        full=full,
        weak=weak,
        restoration_scale=0.5,
        guidance_start=0.0,
        guidance_end=1.0,
    )
    (noise,) = host.run(RandomNoise, noise_seed=seed)
    (sampler,) = host.run(KSamplerSelect, sampler_name="euler")
    (sigmas,) = host.run(BasicScheduler, model=parts.model, scheduler="simple", steps=steps, denoise=1.0)
    samples, _ = host.run(
        SamplerCustomAdvanced, noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
    )
    (decoded,) = host.run(nodes.VAEDecode, vae=parts.vae, samples=samples)
    (cropped,) = host.run(ImageCrop, image=decoded, width=width, height=height, x=0, y=0)
    (aligned,) = host.run(AlignColors, image=cropped, reference=upscaled, method=color)
    return aligned


def assert_same_picture(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)
    assert actual.std() > 0.01


@pytest.mark.parametrize("color", ["adain", "wavelet", "none"])
@pytest.mark.parametrize("tiling", [None, (32, 8)])
def test_one_node_equals_the_wired_graph(host, pixel, tiling, color):
    image = picture(37, 26)
    result = in_one_node(host, pixel, image, tiling=tiling or "off", color_alignment=color)
    assert result.shape == (1, 74, 52, 3)
    assert_same_picture(result, wired(host, pixel, image, tiling=tiling or (0, 0), color=color))


@pytest.mark.parametrize(("tiling", "posterior"), [(None, "sample"), ((128, 32), "mean")])
def test_one_node_equals_the_wired_graph_with_vision_features(host, latent, tiling, posterior):
    image = picture(33, 75)
    result = in_one_node(host, latent, image, tiling=tiling or "off", posterior=posterior)
    assert result.shape == (1, 66, 150, 3)
    assert_same_picture(result, wired(host, latent, image, tiling=tiling or (0, 0), posterior=posterior))


def test_automatic_tiles_are_of_the_training_size(host, pixel):
    image = picture(30, 30)
    recorder = Recorder()
    result = in_one_node(host, pixel, image, tiling="auto", model=recorder.watch(pixel.model))
    assert torch.equal(result, in_one_node(host, pixel, image, tiling=(pixel.tile, pixel.tile // 4)))
    assert {forward.size for forward in recorder.forwards} == {(16, 16)}
    recorder.forwards.clear()
    in_one_node(host, pixel, picture(16, 16), tiling="auto", model=recorder.watch(pixel.model))
    assert {forward.batch for forward in recorder.forwards} == {2}, "one tile holds it all"


@pytest.mark.parametrize("parts_name", ["pixel", "latent"])
@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_items_of_a_batch_are_what_they_are_alone(host, request, parts_name, posterior):
    parts, images = request.getfixturevalue(parts_name), picture(20, 24, batch=2)
    together = in_one_node(host, parts, images, posterior=posterior, seed=7)
    for item in (0, 1):
        alone = in_one_node(host, parts, images[item : item + 1], posterior=posterior, seed=7 + item)
        assert torch.equal(together[item : item + 1], alone)
    assert not torch.equal(together[0], in_one_node(host, parts, images[:1], posterior=posterior, seed=8)[0])


def test_a_preset_takes_the_place_of_the_widget_it_sets(host, latent):
    from realisr.models.presets import PRESETS, TABLE, VOSR

    image = picture(16, 16)
    for preset, scale in zip(PRESETS, TABLE[VOSR]["restoration_scale"], strict=True):
        chosen = in_one_node(host, latent, image, preset=preset, restoration_scale=0.0)
        assert torch.equal(chosen, in_one_node(host, latent, image, restoration_scale=scale))
        assert not torch.equal(chosen, in_one_node(host, latent, image, restoration_scale=0.0, preset="custom"))
    with pytest.raises(ValueError, match=r"The input preset is 'wild'\. It takes 'custom' or 'faithful'"):
        in_one_node(host, latent, image, preset="wild")


def test_last_seed_wraps_around(host, pixel):
    images = picture(16, 16, batch=2)
    together = in_one_node(host, pixel, images, seed=2**64 - 1)
    assert torch.equal(together[1:], in_one_node(host, pixel, images[1:], seed=0))


def test_alpha_is_kept(host, pixel):
    from realisr.models.image import upscale

    image = picture(20, 28, channels=4)
    result = in_one_node(host, pixel, image)
    assert result.shape == (1, 40, 56, 4)
    assert torch.equal(result[..., 3:], upscale(image, 56, 40)[..., 3:])
    assert torch.equal(result[..., :3], in_one_node(host, pixel, image[..., :3]))

    masked = in_one_node(host, pixel, image[..., :3], mask=1 - image[..., 3])
    assert torch.equal(masked, result), "Load Image's mask says the same"


@pytest.mark.parametrize("color", ["adain", "wavelet", "none"])
@pytest.mark.parametrize(("size", "scale"), [((1, 1), 1.0), ((1, 1), 8.0), ((1, 3), 1.0), ((5, 1), 2.5)])
def test_smallest_images(host, pixel, size, scale, color):
    result = in_one_node(host, pixel, picture(*size), by_factor(scale), color_alignment=color)
    assert result.shape == (1, round(size[0] * scale), round(size[1] * scale), 3)
    assert torch.isfinite(result).all() and result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(50, 0, (25, 50)), (0, 50, (50, 100)), (31, 47, (47, 31)), (40, 20, (20, 40))]
)
def test_target_sizes(host, pixel, width, height, expected):
    resize = {"resize": "target size", "width": width, "height": height}
    assert in_one_node(host, pixel, picture(20, 40), resize).shape[1:3] == expected


def test_steps_zero_is_the_models_own_number(host, one_step, latent):
    from dataclasses import replace

    student = replace(latent, tiny=one_step, model=one_step.load())
    for parts, steps, branches in ((latent, 25, 2), (student, 1, 1)):
        recorder = Recorder()
        in_one_node(host, parts, picture(8, 8), steps=0, model=recorder.watch(parts.model))
        assert recorder.batches == [branches] * steps


@pytest.fixture(scope="module")
def one_step_only(host, pixel) -> Parts:
    """A network trained at t = 1 alone, as VOSR nano is; one known by its args."""
    from dataclasses import replace

    tiny = TinyVOSR.create(host, "tiny_posterior_mean", seed=5, latent_channels=12, context_width=0)
    args = PIXEL_ARGS | {"distill_type": "posterior_mean", "auxiliary_time_cond": False}
    (tiny.folder / "args.json").write_text(json.dumps(args))
    return replace(pixel, tiny=tiny, model=tiny.load())


def test_a_posterior_mean_runs_in_one_unguided_step(host, one_step_only):
    """Whatever the scale, which saved workflows have at all values."""
    for steps, scale in ((0, 0.5), (1, 0.5), (1, 1.0)):
        recorder = Recorder()
        watched = recorder.watch(one_step_only.model)
        in_one_node(host, one_step_only, picture(8, 8), steps=steps, restoration_scale=scale, model=watched)
        assert recorder.batches == [1]


def test_a_posterior_mean_refuses_more_steps(host, one_step_only):
    with pytest.raises(
        ValueError, match=r"tiny_posterior_mean is a one-step model.*25 steps would make the image worse"
    ):
        in_one_node(host, one_step_only, picture(8, 8), steps=25)


@pytest.mark.parametrize(
    ("steps", "scale", "message"), [(0, 1.0, "Set steps to 1"), (1, 0.5, "Set restoration_scale .cfg. to 1")]
)
def test_a_posterior_mean_is_no_multi_step_model(host, one_step_only, steps, scale, message):
    """Whatever the variant widget says."""
    told = one_step_only.tiny.load(variant="multi-step")
    with pytest.raises(ValueError, match=message):
        in_one_node(host, one_step_only, picture(8, 8), steps=steps, restoration_scale=scale, model=told)


def test_samplers_of_the_host_cannot_take_a_posterior_mean_further(host, one_step_only):
    from realisr.nodes.vosr import RestorationCFGGuider

    model, scene = one_step_only.model, Scene.random(one_step_only.tiny.config)
    assert run_guider(model, scene, 1.0, 1).isfinite().all()
    with pytest.raises(ValueError, match=r"called it at sigma 0\.5"):
        run_guider(model, scene, 1.0, 2)
    guided = {"full": scene.full, "weak": scene.weak, "guidance_start": 0.0, "guidance_end": 1.0}
    with pytest.raises(ValueError, match="nothing to guide with"):
        host.run(RestorationCFGGuider, model=model, restoration_scale=0.5, **guided)
    host.run(RestorationCFGGuider, model=model, restoration_scale=1.0, **guided)


def test_variants_of_a_model_without_end_time(host, latent, multi_step):
    """A VOSR 2.0 file has the tensors of a multi-step model: the widget or its args.json say what it is."""
    for variant, steps in (("one-step", 1), ("auto", 25)):
        recorder = Recorder()
        in_one_node(host, latent, picture(8, 8), steps=0, model=recorder.watch(multi_step.load(variant=variant)))
        assert len(recorder.forwards) == steps


def test_features_are_encoded_once_a_tile(host, latent):
    """Not once a step, and not for the branch that sees none."""
    network = latent.vision.model
    with CountedCalls(network, "get_intermediate_layers") as calls:
        in_one_node(host, latent, picture(64, 96), steps=3, tiling=(128, 32))
    assert calls.count == 1, "both tiles in one forward"


def test_interrupt_between_items(host, pixel):
    import comfy.model_management

    recorder = Recorder(raise_at=1)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        in_one_node(host, pixel, picture(16, 16, batch=3), steps=2, model=recorder.watch(pixel.model))
    assert len(recorder.forwards) <= 2 + 1
