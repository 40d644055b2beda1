"""The wired graph against diffusers' FluxFillPipeline, on one set of tiny weights, noise and embeddings."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange, repeat
from torch import Tensor

from harness import checkpoints
from harness.vicr import (
    LORA_MODULES,
    LORA_RANK,
    Scene,
    diffusers_fill,
    load_fill,
    load_lora,
    model_space,
    sample,
    tiny_vaes,
)
from harness.vosr import relative_error

STEPS, GUIDANCE = 8, 30.0
TOLERANCE = 1e-3

# Panel height and width in pixels, layout, images.
RUNS = {
    "square": (64, 64, "side by side", 1),
    "wide": (48, 80, "side by side", 1),
    "wide stacked": (48, 80, "stacked", 1),
    "padded": (72, 40, "side by side", 1),
    "two images": (48, 64, "side by side", 2),
}


@pytest.fixture(scope="module")
def weights() -> checkpoints.StateDict:
    return checkpoints.flux(3, fill_model=True, double_blocks=2, single_blocks=2, context_width=32, pooled_width=768)


@pytest.fixture(scope="module")
def vaes(host):
    return tiny_vaes()


@pytest.fixture(scope="module")
def pipeline(weights, vaes):
    return diffusers_fill(weights, vaes[1])


@pytest.fixture(scope="module")
def lora(weights, vaes) -> tuple[object, dict[str, Tensor]]:
    """A pipeline with PEFT's own adapter on the layers VICR trains, and the file a trainer would write of it."""
    from peft import LoraConfig, get_peft_model_state_dict

    adapted = diffusers_fill(weights, vaes[1])
    adapted.transformer.add_adapter(
        LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=LORA_MODULES, init_lora_weights=False)
    )
    tensors = get_peft_model_state_dict(adapted.transformer)
    return adapted, {f"transformer.{name}": tensor.detach().clone() for name, tensor in tensors.items()}


def builder(host, image: Tensor, layout: str):
    from realisr.nodes.vicr import DiptychBuilder

    resize = {"resize": "scale factor", "scale": 2.0}
    return host.run(DiptychBuilder, image=image, resize=resize, layout=layout)


def graph(host, model, vae, image: Tensor, layout: str, scene: Scene) -> tuple[Tensor, Tensor]:
    """Builder -> core conditioning -> core sampler: (raw latent, sigmas)."""
    import node_helpers
    import nodes

    canvas, mask, *_ = builder(host, image, layout)
    text = node_helpers.conditioning_set_values(
        [[scene.text, {"pooled_output": scene.pooled}]], {"guidance": scene.guidance}
    )
    positive, _, latent = host.run(
        nodes.InpaintModelConditioning,
        positive=text,
        negative=text,
        pixels=canvas,
        vae=vae,
        mask=mask,
        noise_mask=False,
    )
    assert latent["samples"].shape == scene.noise.shape
    from realisr.nodes.vicr import FLUXFillSigmas

    (sigmas,) = host.run(FLUXFillSigmas, latent=latent, steps=STEPS, denoise=1.0, base_shift=0.5, max_shift=1.15)
    return sample(model, scene, sigmas, wire=positive), sigmas


@torch.no_grad()
def reference(host, pipeline, image: Tensor, layout: str, scene: Scene) -> tuple[Tensor, Tensor]:
    """The same by diffusers: (latent in the model's space, sigmas)."""
    canvas, mask, *_ = builder(host, image, layout)
    batch, _, height, width = scene.noise.shape
    out = pipeline(
        image=rearrange(canvas, "b h w c -> b c h w"),
        mask_image=mask[:, None],
        height=8 * height,
        width=8 * width,
        prompt_embeds=repeat(scene.text, "1 n c -> b n c", b=batch),
        num_inference_steps=STEPS,
        pooled_prompt_embeds=repeat(scene.pooled, "1 c -> b c", b=batch),
        guidance_scale=scene.guidance,
        latents=pipeline._pack_latents(scene.noise, batch, 16, height, width),
        output_type="latent",
    ).images
    return pipeline._unpack_latents(out, 8 * height, 8 * width, 8), pipeline.scheduler.sigmas


def scene_for(host, run: str) -> tuple[Tensor, str, Scene]:
    height, width, layout, batch = RUNS[run]
    image = torch.rand(batch, height // 2, width // 2, 3)
    record = builder(host, image, layout)[3]
    size = record.canvas_height // 8, record.canvas_width // 8
    return image, layout, Scene.random(size, batch, guidance=GUIDANCE)


@pytest.mark.parametrize("run", RUNS)
def test_graph_equals_pipeline(host, weights, vaes, pipeline, run):
    image, layout, scene = scene_for(host, run)
    raw, sigmas = graph(host, load_fill(host, "oracle_fill", weights), vaes[0], image, layout, scene)
    expected, schedule = reference(host, pipeline, image, layout, scene)
    torch.testing.assert_close(sigmas, schedule, rtol=0, atol=1e-6)
    assert relative_error(model_space(raw), expected) < TOLERANCE


@pytest.mark.parametrize("run", ["wide", "two images"])
def test_with_a_peft_lora_through_the_cores_loader(host, weights, vaes, pipeline, lora, run):
    adapted, tensors = lora
    image, layout, scene = scene_for(host, run)
    model = load_lora(host, load_fill(host, "oracle_fill", weights), "oracle_lora", tensors)
    raw, _ = graph(host, model, vaes[0], image, layout, scene)
    expected, _ = reference(host, adapted, image, layout, scene)
    assert relative_error(model_space(raw), expected) < TOLERANCE
    plain, _ = reference(host, pipeline, image, layout, scene)
    assert relative_error(expected, plain) > 0.05, "the LoRA shows"


def test_the_cores_simple_scheduler_is_not_enough(host, weights, vaes, pipeline):
    """Why there is a node for the sigmas: the closest the host has moves every level."""
    from comfy_extras.nodes_custom_sampler import BasicScheduler
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    model = load_fill(host, "oracle_fill", weights)
    (shifted,) = ModelSamplingFlux().patch(model, max_shift=1.15, base_shift=0.5, width=1024, height=512)
    (simple,) = host.run(BasicScheduler, model=shifted, scheduler="simple", steps=30, denoise=1.0)
    exact = Scene.random((64, 128)).sigmas(30)
    assert 3e-5 < (simple - exact).abs().max() < 3e-4
