"""What DreamSR's training writes, through the nodes: the graph predicts what the trained network does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.dreamsr import load_flux
from harness.dreamsr_training import flux_weights, settings, write_models, write_photos

STEPS, GUIDANCE, TOLERANCE = 20, 3.5, 1e-5
SIZE = (6, 8)


@pytest.fixture(scope="module")
def trained(host, comfyui, tmp_path_factory) -> Any:
    """Ten steps of the control and ten of the LoRA, by the engine, at a rate that shows."""
    from realisr.training.dreamsr.config import DreamSRConfig
    from realisr.training.dreamsr.method import DreamSRMethod
    from realisr.training.engine.engine import Engine

    models = write_models(tmp_path_factory.mktemp("models"))
    photos = write_photos(tmp_path_factory.mktemp("photos"))
    out = tmp_path_factory.mktemp("run")
    content = settings(
        models,
        photos,
        comfyui.comfyui,
        out,
        steps=STEPS,
        batch=1,
        lora={"rank": 4, "alpha": 6.0},
        optimizer={"learning_rate": 3e-3},
    )
    engine = Engine(DreamSRMethod(DreamSRConfig.model_validate(content)))
    engine.run()
    return engine.method


def prompts(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 6, 32, generator=generator), torch.randn(1, 64, generator=generator)


def wire(prompt: tuple[Tensor, Tensor]) -> list[Any]:
    return [[prompt[0], {"pooled_output": prompt[1], "guidance": GUIDANCE}]]


@torch.no_grad()
def network_velocity(trained, x: Tensor, t: float, condition: Tensor | None, lora: bool = False) -> Tensor:
    (tokens, pooled), (local_tokens, local_pooled) = prompts(1), prompts(2)
    batch = {"tokens": tokens, "pooled": pooled, "local_tokens": local_tokens, "local_pooled": local_pooled}
    times = torch.full((1,), t)
    return trained.network.velocity(x, times, batch, condition, lora)


def latents() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(1, 16, *SIZE, generator=generator), torch.randn(1, 16, *SIZE, generator=generator)


def into_host(host, file: Path, folder: str) -> str:
    target = host.models / folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(file.read_bytes())
    return file.name


@pytest.fixture(scope="module")
def controlled(host, trained) -> tuple[Any, Any]:
    """MODEL and CONDITIONING with the trained control, through the nodes."""
    from comfy.latent_formats import Flux

    from realisr.nodes.dreamsr_control import ApplyMMControlNet, LoadMMControlNet

    model = load_flux(host, "trained_dreamsr_flux.safetensors", flux_weights())
    name = into_host(host, trained.config.out / "controlnet" / "dreamsr_mm_controlnet.safetensors", "controlnet")
    (control,) = host.run(LoadMMControlNet, control_name=name, weight_dtype="fp32")
    patched, positive, _ = host.run(
        ApplyMMControlNet,
        model=model,
        mm_controlnet=control,
        positive=wire(prompts(1)),
        local_positive=wire(prompts(2)),
        latent={"samples": Flux().process_out(latents()[1])},
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
        text_branch=True,
    )
    return patched, positive


def graph_velocity(model: Any, positive: list[Any], x: Tensor, t: float) -> Tensor:
    from harness.dreamsr import Scene, velocity

    scene = Scene(x, x, *prompts(1), *prompts(2), t=t, guidance=GUIDANCE)
    return velocity(model, positive, scene)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_training_shows(trained):
    """The written files hold something: both streams are steered, and the LoRA changes the removal."""
    x, condition = latents()
    plain = network_velocity(trained, x, 0.6, None)
    assert relative(network_velocity(trained, x, 0.6, condition), plain) > 0.01
    assert relative(network_velocity(trained, x, 1.0, condition, lora=True), plain) > 0.01


@pytest.mark.parametrize("t", [0.8, 0.3])
def test_the_trained_control_predicts_the_same_in_the_graph(trained, controlled, t):
    x, condition = latents()
    expected = network_velocity(trained, x, t, condition)
    assert relative(graph_velocity(*controlled, x, t), expected) <= TOLERANCE


def test_the_trained_lora_removes_the_same_in_the_graph(host, trained, controlled):
    """Acceleration LoRA Step, with the control: z_lq - t_s v."""
    from comfy.latent_formats import Flux
    from comfy.samplers import CFGGuider

    from realisr.nodes.dreamsr import AccelerationLoRAStep

    model, positive = controlled
    name = into_host(host, trained.config.out / "loras" / "dreamsr_acceleration.safetensors", "loras")
    guider = CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    lq = latents()[1]
    clean, _ = host.run(
        AccelerationLoRAStep,
        guider=guider,
        latent={"samples": Flux().process_out(lq)},
        lora_name=name,
        strength=1.0,
        texture_start=0.8,
        texture_steps=2,
        shift=1.0,
        removal_time=1.0,
    )
    expected = lq - network_velocity(trained, lq, 1.0, lq, lora=True)
    assert relative(Flux().process_in(clean["samples"]), expected) <= TOLERANCE
    without = lq - network_velocity(trained, lq, 1.0, lq)
    assert relative(without, expected) > 0.01
