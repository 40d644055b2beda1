"""Restoration-CFG Guider: which branches run, in how many forwards, and how it meets the host's hooks."""

from __future__ import annotations

import pytest
import torch

from harness.vosr import Recorder, Scene, plain_run, relative_error, run_guider, set_options

FULL, WEAK = 0, 1
STEPS = 4


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("scale", "branches"), [(1.0, {FULL}), (0.0, {WEAK}), (0.5, {FULL, WEAK}), (-0.5, {FULL, WEAK})]
)
def test_one_forward_a_step_with_the_branches_needed(multi_step, scale, branches, batch):
    recorder, scene = Recorder(), Scene.random(multi_step.config, batch=batch)
    result = run_guider(recorder.watch(multi_step.load()), scene, scale, STEPS)
    assert [set(forward.branches) for forward in recorder.forwards] == [branches] * STEPS
    assert recorder.batches == [batch * len(branches)] * STEPS
    assert relative_error(result, plain_run(multi_step, scene, scale, STEPS)) < 1e-5


def test_guidance_interval(multi_step):
    from realisr.models.vosr.sampling import RestorationGuidance

    recorder, scene = Recorder(), Scene.random(multi_step.config)
    result = run_guider(recorder.watch(multi_step.load()), scene, guidance=RestorationGuidance(0.5, 0.4, 0.8), steps=5)
    # Times 1, 0.8, 0.6, 0.4, 0.2: the bounds belong to the interval, though 0.8 is a little more in float32.
    assert [len(forward.branches) for forward in recorder.forwards] == [1, 2, 2, 2, 1]
    assert (
        relative_error(result, plain_run(multi_step, scene, guidance=RestorationGuidance(0.5, 0.39, 0.81), steps=5))
        < 1e-5
    )


class Hook:
    """A post-CFG or pre-CFG function that notes which predictions it was given and passes the result on."""

    def __init__(self):
        self.seen: list[dict] = []

    def after(self, args):
        self.seen.append(args)
        return args["denoised"]

    def before(self, args):
        self.seen.append(args)
        return args["conds_out"]

    def combine(self, args):
        self.seen.append(args)
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])


@pytest.mark.parametrize("kind", ["after", "before", "combine"])
@pytest.mark.parametrize("scale", [0.5, 0.0])
def test_cfg_hooks_see_both_predictions(multi_step, kind, scale):
    """Also at scale 0, where the full branch would not be needed: a hook may use it."""
    hook, recorder, scene = Hook(), Recorder(), Scene.random(multi_step.config)
    model = recorder.watch(multi_step.load())
    if kind == "after":
        model.set_model_sampler_post_cfg_function(hook.after)
    elif kind == "before":
        model.set_model_sampler_pre_cfg_function(hook.before)
    else:
        model.set_model_sampler_cfg_function(hook.combine)
    result = run_guider(model, scene, scale, STEPS)
    assert len(hook.seen) == STEPS and recorder.batches == [2] * STEPS
    for args in hook.seen:
        full, weak = args["conds_out"] if kind == "before" else (args["cond_denoised"], args["uncond_denoised"])
        assert full.abs().max() > 0 and weak.abs().max() > 0 and not torch.equal(full, weak)
    assert relative_error(result, plain_run(multi_step, scene, scale, STEPS)) < 1e-5


def test_hook_that_asks_for_the_negative_gets_it_at_scale_one(multi_step):
    hook, recorder, scene = Hook(), Recorder(), Scene.random(multi_step.config)
    model = recorder.watch(multi_step.load())
    model.set_model_sampler_post_cfg_function(hook.after, disable_cfg1_optimization=True)
    run_guider(model, scene, 1.0, STEPS)
    assert recorder.batches == [2] * STEPS
    assert all(args["uncond_denoised"].abs().max() > 0 for args in hook.seen)


def test_combined_conditionings_are_averaged(multi_step):
    """Conditioning (Combine): three conditions in one batch, each with its own features."""
    model, scene = multi_step.load(), Scene.random(multi_step.config)
    other = Scene.random(multi_step.config, tokens=24, seed=8)
    first, second, both = (
        run_guider(model, scene, 1.0, 1, full=full)
        for full in (scene.full, scene.wire(1.0, other.features), scene.full + scene.wire(1.0, other.features))
    )
    assert relative_error(both, (first + second) / 2) < 1e-5
    assert relative_error(first, second) > 1e-3


def test_mask_limits_a_conditioning(multi_step):
    """Conditioning (Set Mask): where two masks part the picture, each side follows its own conditioning."""
    model, scene = multi_step.load(), Scene.random(multi_step.config)
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1.0
    changed = scene.wire(1.0, Scene.random(multi_step.config, seed=9).features)
    mixed = set_options(scene.full, mask=left) + set_options(changed, mask=1 - left)
    first, second, both = (run_guider(model, scene, 1.0, 1, full=full) for full in (scene.full, changed, mixed))
    assert relative_error(both[..., :8], first[..., :8]) < 1e-5
    assert relative_error(both[..., 8:], second[..., 8:]) < 1e-5


def test_area_is_refused(multi_step):
    scene = Scene.random(multi_step.config)
    with pytest.raises(ValueError, match="cannot be restricted to an area"):
        run_guider(multi_step.load(), scene, full=set_options(scene.full, area=(8, 8, 0, 0)))


def test_text_conditioning_is_refused(multi_step):
    scene, text = Scene.random(multi_step.config), [[torch.randn(1, 77, 24), {"pooled_output": torch.randn(1, 768)}]]
    with pytest.raises(ValueError, match=r"not its own .*Connect the full and weak outputs of VOSR Conditioning"):
        run_guider(multi_step.load(), scene, full=text)
    with pytest.raises(ValueError, match="not its own"):
        run_guider(multi_step.load(), scene, weak=text)


def test_latent_of_another_size_is_refused(multi_step):
    scene = Scene.random(multi_step.config)
    small = Scene.random(multi_step.config, (12, 16))
    with pytest.raises(ValueError, match=r"being sampled is \[4, 16, 16\].* made for \[4, 12, 16\]"):
        run_guider(multi_step.load(), scene, full=small.full, weak=small.weak)


def test_odd_latent_is_refused(multi_step):
    with pytest.raises(ValueError, match=r"multiples of 2, got \[15, 16\]"):
        run_guider(multi_step.load(), Scene.random(multi_step.config, (15, 16)))


def test_features_of_another_encoder_are_refused(multi_step):
    scene = Scene.random(multi_step.config)
    with pytest.raises(ValueError, match=r"features 24 wide, the conditioning's are 32: .*ViT-B/14.*ViT-L/14"):
        run_guider(multi_step.load(), scene, full=scene.wire(1.0, torch.randn(1, 16, 32)))


def test_branches_of_other_tiles_are_refused(multi_step):
    from realisr.models.tiles.grid import TileGrid

    one, other = (Scene.random(multi_step.config, (16, 24), grid=TileGrid(16, 24, side, side, 4)) for side in (16, 12))
    with pytest.raises(ValueError, match=r"for 2 tiles of 16x16.*another for 6 tiles .*one VOSR node"):
        run_guider(multi_step.load(), one, weak=other.weak)


def test_tiles_of_another_canvas_are_refused(multi_step):
    from realisr.models.tiles.grid import TileGrid

    scene = Scene.random(multi_step.config, (16, 24), grid=TileGrid(16, 32, 16, 16, 4))
    with pytest.raises(ValueError, match=r"tiles over a latent of 16x32 cells .*being sampled is \[1, 4, 16, 24\]"):
        run_guider(multi_step.load(), scene)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_repeated_latent_restores_each_image_as_alone(multi_step, scale):
    """RepeatLatentBatch: two images' conditioning, four noises; all of item i belongs to image i mod 2."""
    from dataclasses import replace

    model, images = multi_step.load(), Scene.random(multi_step.config, batch=2)
    noise = torch.randn(4, *images.noise.shape[1:], generator=torch.Generator().manual_seed(3))
    together = run_guider(model, replace(images, noise=noise), scale, 2)
    for item in range(4):
        image, own = slice(item % 2, item % 2 + 1), slice(item, item + 1)
        alone = replace(images, latent=images.latent[image], features=images.features[image], noise=noise[own])
        assert relative_error(together[own], run_guider(model, alone, scale, 2)) < 1e-5


def test_batch_that_does_not_fit_the_conditioning_is_refused(multi_step):
    from dataclasses import replace

    images = Scene.random(multi_step.config, batch=2)
    with pytest.raises(ValueError, match=r"3 latents, .* 2 images"):
        run_guider(multi_step.load(), replace(images, noise=torch.randn(3, 4, 16, 16)))
