"""The MM-ControlNet under the host's memory management, beside LoRAs, and in compiled models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.checkpoints import flux
from harness.dreamsr import (
    POOLED_WIDTH,
    TEXT_WIDTH,
    Scene,
    apply_control,
    control_config,
    control_weights,
    load_control,
    load_flux,
    sample,
    velocity,
)
from harness.straight_line_flux import flux_velocity
from harness.vosr import relative_error


@pytest.fixture(scope="module")
def flux_weights() -> dict[str, Tensor]:
    return flux(1, context_width=TEXT_WIDTH, pooled_width=POOLED_WIDTH, single_blocks=1, double_blocks=2)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return control_weights()


@pytest.fixture(scope="module")
def model(host, flux_weights):
    return load_flux(host, "small_flux.safetensors", flux_weights)


@pytest.fixture
def control(host, weights):
    return load_control(host, "managed.safetensors", weights)


@pytest.fixture
def scene() -> Scene:
    return Scene.random((4, 4))


def when_prepared(model: Any, act: Any) -> Any:
    """A clone that calls `act` once the host has loaded everything for a run."""
    from comfy.patcher_extension import WrappersMP

    def prepare(executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        act()
        return out

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "test", prepare)
    return clone


def test_is_loaded_with_the_model_and_not_by_itself(model, control, scene):
    import comfy.model_management as management

    def loaded() -> bool:
        return any(
            entry.model is not None and entry.model.model is control.network
            for entry in management.current_loaded_models
        )

    management.unload_all_models()
    patched, positive, _ = apply_control(model, control, scene)
    assert not loaded()
    during = []
    sample(when_prepared(patched, lambda: during.append(loaded())), positive, scene, steps=1)
    assert during == [True]
    management.unload_all_models()
    sample(model, scene.positive, scene, steps=1)
    assert not loaded()


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_partly_offloaded_control_gives_the_same(model, control, scene, keep):
    import comfy.model_management as management

    patched, positive, _ = apply_control(model, control, scene)
    whole = velocity(patched, positive, scene)
    management.unload_all_models()
    size = control.patcher.model_size()

    def offload() -> None:
        (mine,) = [entry.model for entry in management.current_loaded_models if entry.model.model is control.network]
        mine.partially_unload(torch.device("cpu"), int(size * (1 - keep)))

    assert relative_error(velocity(when_prepared(patched, offload), positive, scene), whole) < 1e-6
    casting = [part.comfy_cast_weights for part in control.network.modules() if hasattr(part, "comfy_cast_weights")]
    assert (all if keep == 0.0 else any)(casting)
    management.unload_all_models()


def test_memory_estimate_covers_the_features(model, control, scene, monkeypatch):
    import comfy.sampler_helpers

    seen = []
    original = comfy.sampler_helpers.estimate_memory

    def estimate(patcher, noise_shape, conds):
        seen.append(original(patcher, noise_shape, conds)[1])
        return original(patcher, noise_shape, conds)

    monkeypatch.setattr(comfy.sampler_helpers, "estimate_memory", estimate)
    patched, positive, _ = apply_control(model, control, scene)
    velocity(model, scene.positive, scene)
    velocity(patched, positive, scene)
    tokens, blocks, hidden, itemsize = 4, 2, 256, 4
    assert seen[1] - seen[0] >= tokens * blocks * hidden * itemsize


def test_lora_on_the_model(host, model, flux_weights, weights, control, scene):
    """It changes the DiT alone: the result is that of merged DiT weights and the control's own."""
    import nodes

    merged, lora = dict(flux_weights), {}
    for name in ("double_blocks.1.img_attn.qkv", "single_blocks.0.linear2", "double_blocks.0.txt_mlp.0"):
        out, inner = flux_weights[f"{name}.weight"].shape
        down, up = torch.randn(4, inner) * inner**-0.5, torch.randn(out, 4) * 0.3
        lora |= {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
        merged[f"{name}.weight"] = flux_weights[f"{name}.weight"] + up @ down
    host.save_model("loras", "some.safetensors", lora)
    reference = flux_velocity(merged, scene, weights, (0, 1))

    def with_lora(each):
        return host.run(nodes.LoraLoaderModelOnly, model=each, lora_name="some.safetensors", strength_model=1.0)[0]

    patched, positive, _ = apply_control(with_lora(model), control, scene)
    assert (velocity(patched, positive, scene) - reference).abs().max() <= 5e-5
    after = with_lora(apply_control(model, control, scene)[0])
    assert (velocity(after, positive, scene) - reference).abs().max() <= 5e-5
    assert relative_error(velocity(*apply_control(model, control, scene)[:2], scene), reference) > 0.01


@pytest.mark.slow
def test_torch_compile_equals_eager(host, scene, monkeypatch):
    """Control network and DiT in one graph, for all steps and whichever node comes first."""
    import comfy.ldm.flux.math
    import comfy.ldm.modules.attention as attention
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    # What the host uses on a GPU. Its CPU default asks for the free memory in Python, which cannot be traced.
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", attention.attention_pytorch)

    def compiled(each):
        return host.run(TorchCompileModel, model=each, backend="eager")[0]

    shallow = flux(2, context_width=TEXT_WIDTH, pooled_width=POOLED_WIDTH, single_blocks=1, double_blocks=1)
    model = load_flux(host, "shallow_flux.safetensors", shallow)
    control = load_control(host, "shallow.safetensors", control_weights(control_config(layers=1)))
    eager, positive, _ = apply_control(model, control, scene)
    expected = sample(eager, positive, scene)
    torch._dynamo.utils.counters.clear()
    for run in (compiled(eager), apply_control(compiled(model), control, scene)[0]):
        assert relative_error(sample(run, positive, scene), expected) < 1e-5
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1, "compiled once for all steps"
    assert not counters["graph_break"]
    # The host lets compiled code stay valid whatever its options hold; what a control does must not be among them.
    weaker, softly, _ = apply_control(compiled(model), control, scene, strength=0.3)
    plain, _, _ = apply_control(model, control, scene, strength=0.3)
    assert relative_error(sample(weaker, softly, scene), sample(plain, softly, scene)) < 1e-5


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "res_multistep", "lcm"])
def test_samplers(model, control, scene, sampler):
    patched, positive, _ = apply_control(model, control, scene)
    result = sample(patched, positive, scene, sampler=sampler)
    assert torch.isfinite(result).all()
    assert relative_error(result, sample(model, scene.positive, scene, sampler=sampler)) > 0.01
