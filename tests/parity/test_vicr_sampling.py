"""FLUX Fill in the host against the reference numbers: bare forward, sampling, LoRA, Vision-Context Bridge."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.vicr import LATENT_SCALE, Scene, bridged, load_bridge, load_fill, load_lora, model_space, sample, velocity
from parity import golden

FORWARD_TOLERANCE, MID_TOLERANCE, TOLERANCE, VECTOR_TOLERANCE = 2e-5, 6e-5, 5e-5, 2e-6


@pytest.fixture
def fill(host):
    return load_fill(host, "golden_flux_fill", golden.weights("flux_fill", "flux")[1])


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
def test_bare_forward(host, case):
    name = case.parameters["model"]
    model = load_fill(host, f"golden_{name}", golden.weights(name, "flux")[1])
    network = model.model.diffusion_model
    seen = record(network)
    x, concat, text = case["in/x"], case.get("in/concat"), case["in/txt"]
    if concat is not None:
        x = torch.cat([x, concat.expand(len(x), -1, -1, -1)], dim=1)
    out = network(x, case["in/t"], text, case["in/pooled"], case["in/guidance"])
    golden.assert_within(out[:, :16], case["out/v"], FORWARD_TOLERANCE)
    seen["vec"] = seen["time_in"] + seen["guidance_in"] + seen["vector_in"]
    for key in case.keys("mid/*"):
        part = key.removeprefix("mid/")
        found = seen[part.removesuffix("_img")][:, text.shape[1] :] if part.startswith("single") else seen[part]
        golden.assert_within(found, case[key], MID_TOLERANCE, part)


@pytest.mark.parametrize("case", golden.cases("vicr_sample", "flux"))
def test_sampling(fill, case):
    scene = replace(Scene.of_case(case), guidance=case.parameters["guidance"])
    sigmas = scene.sigmas(case.parameters["steps"])
    golden.assert_within(sigmas, case["out/sigmas"], 1e-6, "sigmas")
    raw = sample(fill, scene, case["out/sigmas"])
    golden.assert_within(model_space(raw), case["out/latent"], TOLERANCE)
    golden.assert_within(raw, case["out/latent_raw"], TOLERANCE / LATENT_SCALE, "raw")
    width = case.parameters["panel"][1] // 8
    golden.assert_within(model_space(raw)[..., width:], case["out/right"], TOLERANCE, "right half")


@pytest.mark.parametrize("case", golden.cases("vicr_lora", "flux"))
def test_lora(host, fill, case):
    _, weights = golden.weights("vicr_lora", "flux")
    strength = case.parameters["strength"]
    model = load_lora(host, fill, "golden_vicr_lora", weights, strength) if strength else fill
    scene = Scene.of_case(case)
    golden.assert_within(velocity(model, scene, case["in/x"], case["in/t"]), case["out/v"], TOLERANCE)
    if strength:
        golden.assert_within(
            model_space(sample(model, scene, case.parameters["steps"])), case["out/latent"], TOLERANCE, "sampled"
        )


@pytest.mark.parametrize("case", [case for case in golden.cases("vicr_bridge", "flux") if "batch_tail" not in case.id])
def test_bridge(host, fill, case):
    from types import SimpleNamespace

    from realisr.host.vicr.bridge import context_vector

    bridge = load_bridge(host, "golden_bridge", golden.weights(case.parameters["bridge"], "flux")[1])
    embeds = case["in/clip_image_embeds"]
    with torch.inference_mode():
        vector = context_vector(bridge, SimpleNamespace(image_embeds=embeds))
    golden.assert_within(vector, case["out/vector"], VECTOR_TOLERANCE, "vector")

    model = fill
    if case.parameters["lora"]:
        model = load_lora(host, model, "golden_vicr_lora", golden.weights("vicr_lora", "flux")[1])
    scene = Scene.of_case(case)
    model, wire = bridged(model, scene.wire, bridge, embeds)
    golden.assert_within(velocity(model, scene, case["in/x"], case["in/t"], wire), case["out/v"], TOLERANCE)
    raw = sample(model, scene, case.parameters["steps"], wire=wire)
    golden.assert_within(model_space(raw), case["out/latent"], TOLERANCE, "sampled")


@pytest.mark.parametrize("case", [case for case in golden.cases("vicr_bridge", "flux") if "batch_tail" in case.id])
def test_one_batch_with_and_without_vector(host, fill, case):
    """Positive and negative in one forward: row 0 has the vector, row 1 has not."""
    import comfy.samplers

    bridge = load_bridge(host, "golden_bridge", golden.weights(case.parameters["bridge"], "flux")[1])
    scene, x = Scene.of_case(case), case["in/x"]
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
    found = torch.cat([(x - denoised) / case["in/t"] for denoised in seen])
    golden.assert_within(found, case["out/v"], TOLERANCE)
