"""A VOSR MODEL under the host's own samplers and schedulers."""

from __future__ import annotations

import pytest
import torch

from harness.vosr import Scene, plain_run, relative_error, run_guider

TOLERANCE = 1e-5

ODE_SAMPLERS = {"heun": 15, "dpmpp_2m": 30, "uni_pc": 30, "res_multistep": 30}
STOCHASTIC_SAMPLERS = ["euler_ancestral", "dpmpp_2s_ancestral", "lcm", "er_sde"]


def scheduled(model, steps: int):
    """BasicScheduler's `simple` sigmas."""
    from comfy_extras.nodes_custom_sampler import BasicScheduler

    from harness.host import InProcessHost

    (sigmas,) = InProcessHost.run(BasicScheduler, model=model, scheduler="simple", steps=steps, denoise=1.0)
    return sigmas


@pytest.mark.parametrize("steps", [1, 2, 4, 6, 7, 10, 15, 25, 30, 50])
def test_simple_scheduler_is_the_linear_schedule(multi_step, steps):
    """To one unit of float32 at 1: sigmas come from a table of float32 fractions."""
    sigmas = scheduled(multi_step.load(), steps)
    torch.testing.assert_close(sigmas, torch.linspace(1, 0, steps + 1), rtol=0, atol=6.1e-8)


@pytest.mark.parametrize(
    ("tiny_name", "scale", "steps"),
    [
        ("multi_step", 0.5, 25),
        ("multi_step", -0.5, 5),
        ("multi_step", 1.0, 5),
        ("multi_step", 2.0, 5),
        ("qwen_space", 0.5, 5),
    ],
)
def test_core_ksampler_equals_custom_advanced_and_plain_loop(host, request, tiny_name, scale, steps):
    import nodes
    from comfy_extras.nodes_custom_sampler import KSamplerSelect, RandomNoise, SamplerCustomAdvanced

    from realisr.nodes.vosr import RestorationCFGGuider

    tiny = request.getfixturevalue(tiny_name)
    model, scene = tiny.load(), Scene.random(tiny.config)
    (core,) = host.run(
        nodes.KSampler,
        model=model,
        seed=scene.seed,
        steps=steps,
        cfg=scale,
        sampler_name="euler",
        scheduler="simple",
        positive=scene.full,
        negative=scene.weak,
        latent_image=scene.empty,
        denoise=1.0,
    )
    (guider,) = host.run(
        RestorationCFGGuider,
        model=model,
        full=scene.full,
        weak=scene.weak,
        restoration_scale=scale,
        guidance_start=0.0,
        guidance_end=1.0,
    )
    (noise,) = host.run(RandomNoise, noise_seed=scene.seed)
    (sampler,) = host.run(KSamplerSelect, sampler_name="euler")
    custom, denoised = host.run(
        SamplerCustomAdvanced,
        noise=noise,
        guider=guider,
        sampler=sampler,
        sigmas=scheduled(model, steps),
        latent_image=scene.empty,
    )
    assert torch.equal(core["samples"], custom["samples"])
    assert relative_error(denoised["samples"], custom["samples"]) < TOLERANCE
    expected = plain_run(tiny, scene, scale, steps)
    assert relative_error(core["samples"], expected) < TOLERANCE


def test_ode_samplers_reach_the_euler_limit(multi_step):
    """Other samplers solve the same equation: at enough steps they come closer to Euler's limit than Euler does."""
    model, scene = multi_step.load(), Scene.random(multi_step.config, (4, 4))
    limit, coarse = run_guider(model, scene, steps=150), run_guider(model, scene, steps=30)
    errors = {
        name: relative_error(run_guider(model, scene, steps=steps, sampler=name), limit)
        for name, steps in ODE_SAMPLERS.items()
    }
    assert max(errors.values()) < relative_error(coarse, limit) < 0.1


@pytest.mark.parametrize("sampler", STOCHASTIC_SAMPLERS)
def test_stochastic_samplers_repeat_and_stay_finite(multi_step, sampler):
    model, scene = multi_step.load(), Scene.random(multi_step.config, (4, 4))
    first, second = (run_guider(model, scene, steps=4, sampler=sampler) for _ in range(2))
    assert torch.isfinite(first).all() and torch.equal(first, second)
    euler = run_guider(model, scene, steps=6)
    assert 0.2 < first.std() / euler.std() < 5


@pytest.mark.parametrize("multiplier_patch", [False, True])
def test_time_is_sigma_whatever_a_sampling_patch_counts_in(host, multi_step, multiplier_patch):
    """ModelSamplingSD3 counts timesteps in thousands, ModelSamplingAuraFlow in ones; the network's time runs 0..1."""
    from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow, ModelSamplingSD3

    node = ModelSamplingSD3 if multiplier_patch else ModelSamplingAuraFlow
    model, scene = multi_step.load(), Scene.random(multi_step.config)
    (patched,) = getattr(node(), node.FUNCTION)(model, shift=1.0)
    assert torch.equal(run_guider(patched, scene), run_guider(model, scene))


def test_denoise_below_one_starts_from_the_latent(host, multi_step):
    """Image to image works as with any MODEL: at a small denoise the result stays near the latent given."""
    import nodes

    model, scene = multi_step.load(), Scene.random(multi_step.config)
    start = {"samples": scene.latent.clone()}
    results = {}
    for denoise in (0.02, 1.0):
        (results[denoise],) = host.run(
            nodes.KSampler,
            model=model,
            seed=1,
            steps=4,
            cfg=0.5,
            sampler_name="euler",
            scheduler="simple",
            positive=scene.full,
            negative=scene.weak,
            latent_image=start,
            denoise=denoise,
        )
    near, far = (relative_error(results[d]["samples"], scene.latent) for d in (0.02, 1.0))
    assert near < 0.2 < far
