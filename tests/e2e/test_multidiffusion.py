"""Tile Grid and Tiled MultiDiffusion in a running ComfyUI: lists, progress, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from safetensors.torch import save_file

from comfy_client import PromptError
from comfy_server import ComfyServer
from harness.checkpoints import flux, taesd

SAMPLER, TILED, SAVE = "sampler", "tiled", "save"


@pytest.fixture(scope="module")
def files(server: ComfyServer) -> None:
    weights = flux(heads=1, double_blocks=1, single_blocks=1, context_width=16, pooled_width=16)
    for folder, name, content in (("diffusion_models", "flux", weights), ("vae", "taef1", taesd())):
        (server.models / folder).mkdir(parents=True, exist_ok=True)
        save_file(content, server.models / folder / f"multidiffusion_{name}.safetensors")


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def text(seed: int) -> dict[str, Any]:
    return node("RealISRTest_RandomConditioning", seed=seed, tokens=4, width=16, pooled_width=16)


SAMPLING = {"weights": "gaussian", "tiles_per_batch": 1, "true_positions": False, "patch_prompt_reader": "auto"}


def base(**widgets: Any) -> dict[str, Any]:
    """Two tiles side by side over an image of 96 x 64."""
    return {
        "image": node("RealISRTest_RandomImage", seed=1, width=96, height=64, batch=1),
        "grid": node(
            "RealISR_TileGrid", size_of=["image", 0], **{"tile_size": 64, "overlap": 32, "align": 2} | widgets
        ),
        "model": node("UNETLoader", unet_name="multidiffusion_flux.safetensors", weight_dtype="default"),
        "vae": node("VAELoader", vae_name="multidiffusion_taef1.safetensors"),
        "latent": node("VAEEncode", pixels=["image", 0], vae=["vae", 0]),
        "positive": text(0),
        "negative": text(1),
        "first": text(2),
        "second": text(3),
        "prompts": node("ConditioningCombine", conditioning_1=["first", 0], conditioning_2=["second", 0]),
        "decoded": node("VAEDecode", samples=[SAMPLER, 0], vae=["vae", 0]),
        SAVE: node("PreviewImage", images=["decoded", 0]),
        "preview": node("PreviewImage", images=["grid", 1]),
    }


def ksampler(**inputs: Any) -> dict[str, Any]:
    return node(
        "KSampler",
        model=[TILED, 0],
        negative=["negative", 0],
        latent_image=["latent", 0],
        seed=3,
        steps=2,
        cfg=2.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
        **inputs,
    )


def test_an_image_is_sampled_in_tiles(server: ComfyServer, files):
    result = server.client.run(
        base()
        | {
            TILED: node(
                "RealISR_TiledMultiDiffusion",
                model=["model", 0],
                tile_grid=["grid", 0],
                positive=["positive", 0],
                patch_prompts=["prompts", 0],
                **SAMPLING,
            ),
            SAMPLER: ksampler(positive=[TILED, 1]),
        }
    )
    assert server.client.image(result.images(SAVE)[0]).size == (96, 64)
    assert server.client.image(result.images("preview")[0]).size == (96, 64)
    assert (4, 4) in result.progress(SAMPLER), "progress counts tiles of all steps"


def test_the_guider_samples_in_tiles(server: ComfyServer, files):
    result = server.client.run(
        base()
        | {
            TILED: node(
                "RealISR_TiledMultiDiffusionGuider",
                model=["model", 0],
                tile_grid=["grid", 0],
                positive=["positive", 0],
                cfg=1.0,
                patch_prompts=["prompts", 0],
                **SAMPLING,
            ),
            "noise": node("RandomNoise", noise_seed=3),
            "euler": node("KSamplerSelect", sampler_name="euler"),
            "sigmas": node("BasicScheduler", model=["model", 0], scheduler="simple", steps=2, denoise=1.0),
            SAMPLER: node(
                "SamplerCustomAdvanced",
                noise=["noise", 0],
                guider=[TILED, 0],
                sampler=["euler", 0],
                sigmas=["sigmas", 0],
                latent_image=["latent", 0],
            ),
        }
    )
    assert server.client.image(result.images(SAVE)[0]).size == (96, 64)
    assert (4, 4) in result.progress(SAMPLER)


def test_a_positive_that_is_not_there_is_named(server: ComfyServer, files):
    with pytest.raises(PromptError, match="positive output is used, but its positive input is not connected"):
        server.client.run(
            base()
            | {
                TILED: node("RealISR_TiledMultiDiffusion", model=["model", 0], tile_grid=["grid", 0], **SAMPLING),
                SAMPLER: ksampler(positive=[TILED, 1]),
            }
        )


def test_bad_widgets_are_refused_before_the_run(server: ComfyServer, files):
    graph = base(overlap=64) | {
        TILED: node("RealISR_TiledMultiDiffusion", model=["model", 0], tile_grid=["grid", 0], **SAMPLING),
        SAMPLER: ksampler(positive=["positive", 0]),
    }
    with pytest.raises(PromptError, match="smaller than the tile size 64 px") as caught:
        server.client.run(graph)
    assert caught.value.exception_type == "ValidationError"
