"""FLUX Fill in the host against the reference numbers: bare forward, sampling, LoRA, Vision-Context Bridge."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.vicr import LATENT_SCALE, Scene, bridged, load_bridge, load_fill, load_lora, model_space, sample, velocity
from parity import flux_oracle, golden

pytestmark = pytest.mark.slow

FORWARD_TOLERANCE, MID_TOLERANCE, TOLERANCE, VECTOR_TOLERANCE = 2e-5, 6e-5, 5e-5, 2e-6


@pytest.fixture
def fill(host, case):
    name = case.parameters["model"]
    return load_fill(host, f"golden_{name}", golden.weights(name, "flux")[1])


def scene_of(case) -> Scene:
    return replace(Scene.of_case(case), guidance=flux_oracle.guidance(case))


def golden_lora(host, model, name: str, strength: float = 1.0):
    return load_lora(host, model, f"golden_{name}", golden.weights(name, "flux")[1], strength)


def golden_bridge(host, case):
    name = case.parameters["bridge"]
    return load_bridge(host, f"golden_{name}", golden.weights(name, "flux")[1])


def record(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Outputs of the parts whose intermediates the golden files hold, filled during the next forward."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(_module, _inputs, output):
            # Copies: the blocks add to their input in place.
            if isinstance(output, tuple):
                seen[f"{name}_img"], seen[f"{name}_txt"] = (stream.clone() for stream in output)
            else:
                seen[name] = output.clone()

        return hook

    parts = {"img_in": network.img_in, "txt_in": network.txt_in}
    parts |= {name: getattr(network, name) for name in ("time_in", "guidance_in", "vector_in")}
    parts |= {f"double{index}": block for index, block in enumerate(network.double_blocks)}
    parts |= {f"single{index}": block for index, block in enumerate(network.single_blocks)}
    for name, part in parts.items():
        part.register_forward_hook(keep(name))
    return seen


@torch.no_grad()
@pytest.mark.parametrize("case", golden.cases("flux_forward", "flux"))
def test_bare_forward(fill, case):
    network = fill.model.diffusion_model
    seen = record(network)
    x, concat, text = case["in/x"], case.get("in/concat"), case["in/txt"]
    if concat is not None:
        x = torch.cat([x, concat.expand(len(x), -1, -1, -1)], dim=1)
    out = network(x, case["in/t"], text, case["in/pooled"], case["in/guidance"])
    judge = flux_oracle.forward(case)
    judge.check("v", out[:, :16], case["out/v"], FORWARD_TOLERANCE)
    seen["vec"] = seen["time_in"] + seen["guidance_in"] + seen["vector_in"]
    for key in case.keys("mid/*"):
        part = key.removeprefix("mid/")
        found = seen[part.removesuffix("_img")][:, text.shape[1] :] if part.startswith("single") else seen[part]
        judge.check(part, found, case[key], MID_TOLERANCE)


@pytest.mark.parametrize("case", golden.cases("vicr_sample", "flux"))
def test_sampling(fill, case):
    scene = scene_of(case)
    sigmas = scene.sigmas(case.parameters["steps"])
    golden.assert_within(sigmas, case["out/sigmas"], 1e-6, "sigmas")
    raw = sample(fill, scene, case["out/sigmas"])
    judge = flux_oracle.diptych(case, sigmas=case["out/sigmas"])
    judge.check("latent", model_space(raw), case["out/latent"], TOLERANCE)
    judge.check("latent_raw", raw, case.get("out/latent_raw"), TOLERANCE / LATENT_SCALE)
    width = case.parameters["panel"][1] // 8
    judge.check("right", model_space(raw)[..., width:], case.get("out/right"), TOLERANCE)


@pytest.mark.parametrize("case", golden.cases("vicr_lora", "flux"))
def test_lora(host, fill, case):
    name, strength = case.parameters["lora"], case.parameters["strength"]
    model = golden_lora(host, fill, name, strength) if strength else fill
    scene, judge = scene_of(case), flux_oracle.diptych(case, name, strength)
    judge.check("v", velocity(model, scene, case["in/x"], case["in/t"]), case["out/v"], TOLERANCE)
    if "steps" in case.parameters:
        sampled = model_space(sample(model, scene, case.parameters["steps"]))
        judge.check("latent", sampled, case["out/latent"], TOLERANCE)


LORA = "vicr_lora"
"""Of the bridge's cases that have one; their metadata only say whether."""


@pytest.mark.parametrize("case", golden.cases("vicr_bridge", "flux", lambda case: "steps" in case.parameters))
def test_bridge(host, fill, case):
    from types import SimpleNamespace

    from realisr.host.vicr.bridge import context_vector

    bridge = golden_bridge(host, case)
    embeds = case["in/clip_image_embeds"]
    with torch.inference_mode():
        vector = context_vector(bridge, SimpleNamespace(image_embeds=embeds))
    golden.assert_within(vector, case["out/vector"], VECTOR_TOLERANCE, "vector")

    lora = LORA if case.parameters["lora"] else None
    model = golden_lora(host, fill, lora) if lora else fill
    scene, judge = scene_of(case), flux_oracle.diptych(case, lora)
    model, wire = bridged(model, scene.wire, bridge, embeds)
    judge.check("v", velocity(model, scene, case["in/x"], case["in/t"], wire), case["out/v"], TOLERANCE)
    raw = sample(model, scene, case.parameters["steps"], wire=wire)
    judge.check("latent", model_space(raw), case["out/latent"], TOLERANCE)


@pytest.mark.parametrize("case", golden.cases("vicr_bridge", "flux", lambda case: "steps" not in case.parameters))
def test_one_batch_with_and_without_vector(host, fill, case):
    """Positive and negative in one forward: row 0 has the vector, row 1 has not."""
    import comfy.samplers

    bridge = golden_bridge(host, case)
    scene, x = scene_of(case), case["in/x"]
    model, wire = bridged(fill, scene.wire, bridge, case["in/clip_image_embeds"])
    seen, batches = [], []

    def evaluate(wrapped, start, sigmas, extra_args, *_, **__):
        wrapped(x, case["in/t"], **extra_args)
        return start

    def keep(args):
        seen.extend(args[name] for name in ("cond_denoised", "uncond_denoised"))
        return args["denoised"]

    def count(executor, latent, *args, **kwargs):
        batches.append(len(latent))
        return executor(latent, *args, **kwargs)

    model.set_model_sampler_post_cfg_function(keep)
    model.add_wrapper_with_key("diffusion_model", "count", count)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(wire, scene.wire)
    guider.set_cfg(2.0)
    with torch.inference_mode():
        guider.sample(
            torch.zeros_like(x),
            torch.zeros_like(x),
            comfy.samplers.KSAMPLER(evaluate),
            torch.tensor([1.0, 0.0]),
            disable_pbar=True,
            seed=0,
        )
    assert batches == [2]
    judge = flux_oracle.diptych(case)
    for key, denoised, frozen in zip(("v", "v without vector"), seen, case["out/v"].split(1), strict=True):
        judge.check(key, (x - denoised) / case["in/t"], frozen, TOLERANCE)
