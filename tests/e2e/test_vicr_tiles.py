"""Diptych Tiles in a running ComfyUI: prompts of tiles, progress, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from safetensors.torch import save_file

from comfy_client import PromptError
from comfy_server import ComfyServer
from harness.checkpoints import flux, taesd

SAMPLER, TILES, SAVE = "sampler", "tiles", "save"


@pytest.fixture(scope="module")
def files(server: ComfyServer) -> None:
    weights = flux(fill_model=True, heads=1, double_blocks=1, single_blocks=1, context_width=16, pooled_width=16)
    for folder, name, content in (("diffusion_models", "fill", weights), ("vae", "taef1", taesd())):
        (server.models / folder).mkdir(parents=True, exist_ok=True)
        save_file(content, server.models / folder / f"tiles_{name}.safetensors")


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def graph(prompts: int, **widgets: Any) -> dict[str, Any]:
    """Two tiles side by side, with `prompts` prompts of their own (0 for none), sampled in two steps."""
    text = {
        str(seed): node("RealISRTest_RandomConditioning", seed=seed, tokens=4, width=16, pooled_width=16)
        for seed in range(prompts + 1)
    }
    both = {
        f"with_{seed}": node(
            "ConditioningCombine",
            conditioning_1=[f"with_{seed - 1}" if seed > 2 else "1", 0],
            conditioning_2=[str(seed), 0],
        )
        for seed in range(2, prompts + 1)
    }
    own = {"tile_prompts": [f"with_{prompts}" if prompts > 1 else "1", 0]} if prompts else {}
    return (
        text
        | both
        | {
            "image": node("RealISRTest_RandomImage", seed=1, width=96, height=60, batch=1),
            "built": node(
                "RealISR_DiptychBuilder",
                image=["image", 0],
                resize="scale factor",
                layout="side by side",
                **{"resize.scale": 1.0},
            ),
            "model": node("UNETLoader", unet_name="tiles_fill.safetensors", weight_dtype="default"),
            "vae": node("VAELoader", vae_name="tiles_taef1.safetensors"),
            TILES: node(
                "RealISR_DiptychTiles",
                model=["model", 0],
                positive=["0", 0],
                vae=["vae", 0],
                canvas=["built", 0],
                diptych=["built", 3],
                **{"tile_size": 64, "tile_overlap": 32, "weights": "gaussian", "tiles_per_batch": 1} | widgets,
                **own,
            ),
            "sigmas": node(
                "RealISR_FLUXFillSigmas", latent=[TILES, 4], steps=2, denoise=1.0, base_shift=0.5, max_shift=1.15
            ),
            "noise": node("RandomNoise", noise_seed=3),
            "guider": node("BasicGuider", model=[TILES, 0], conditioning=[TILES, 1]),
            "euler": node("KSamplerSelect", sampler_name="euler"),
            SAMPLER: node(
                "SamplerCustomAdvanced",
                noise=["noise", 0],
                guider=["guider", 0],
                sampler=["euler", 0],
                sigmas=["sigmas", 0],
                latent_image=[TILES, 3],
            ),
            "decoded": node("VAEDecode", samples=[SAMPLER, 0], vae=["vae", 0]),
            "crop": node("RealISR_DiptychCrop", image=["decoded", 0], diptych=["built", 3]),
            SAVE: node("PreviewImage", images=["crop", 0]),
        }
    )


@pytest.mark.parametrize("prompts", [0, 2])
def test_a_large_image_is_restored_in_tiles(server: ComfyServer, files, prompts: int):
    result = server.client.run(graph(prompts))
    assert server.client.image(result.images(SAVE)[0]).size == (96, 60)
    assert (4, 4) in result.progress(SAMPLER), "progress counts tiles of all steps"


def test_the_list_of_tile_images_runs_what_follows_once_each(server: ComfyServer, files):
    whole = graph(0)
    shown = {
        "images": node(
            "RealISR_DiptychTileImages", canvas=["built", 0], diptych=["built", 3], tile_size=64, tile_overlap=32
        ),
        SAVE: node("PreviewImage", images=["images", 0]),
    }
    result = server.client.run({name: whole[name] for name in ("image", "built")} | shown)
    assert [server.client.image(file).size for file in result.images(SAVE)] == [(64, 64)] * 2


def test_bad_widgets_are_refused_before_the_run(server: ComfyServer, files):
    with pytest.raises(PromptError, match="smaller than the tile size 64") as caught:
        server.client.run(graph(0, tile_overlap=64))
    assert caught.value.exception_type == "ValidationError"


def test_prompts_that_do_not_fit_the_tiles_are_refused(server: ComfyServer, files):
    with pytest.raises(PromptError, match="got 3 tile prompts for 2 tiles") as caught:
        server.client.run(graph(3))
    assert caught.value.node_id == TILES
