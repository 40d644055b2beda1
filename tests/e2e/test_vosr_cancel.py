"""Cancelling VOSR in a running ComfyUI: it stops at once, the next prompt works, and nothing stays behind."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from _pack import ROOT
from comfy_server import ComfyServer, PromptInterrupted
from harness.server_memory import READABLE, require_freed, resident_megabytes

NODE = "4"
MODEL = "nano_multi_step.safetensors"
BUNDLED = ROOT / "weights" / "vosr_nano.safetensors"
ARGS_KEY = "vosr_args"
STEPS = 40


def save_multi_step(server: ComfyServer) -> None:
    """The bundled network as one that takes many steps: it restores nothing so, and its speed is the same."""
    with safe_open(BUNDLED, "pt") as file:
        args = json.loads(file.metadata()[ARGS_KEY])
        weights = {name: file.get_tensor(name) for name in file.keys()}
    del args["distill_type"]
    target = server.models / "diffusion_models" / MODEL
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, target, metadata={ARGS_KEY: json.dumps(args)})


def restoration(seed: int, steps: int, width: int) -> dict:
    """Tiled multi-step restoration of a random image."""
    return {
        "1": {"class_type": "RealISRTest_RandomImage", "inputs": {"seed": 1, "width": width, "height": 96, "batch": 1}},
        "2": {
            "class_type": "RealISR_LoadVOSRModel",
            "inputs": {"model_name": MODEL, "weight_dtype": "default", "variant": "auto"},
        },
        "3": {
            "class_type": "RealISR_LoadVOSRVAE",
            "inputs": {"vae_name": "pixel unshuffle x2 (no file)", "decoder_name": "none (the VAE's own)"},
        },
        NODE: {
            "class_type": "RealISR_RestorationCFGSampler",
            "inputs": {
                "model": ["2", 0],
                "vae": ["3", 0],
                "image": ["1", 0],
                "resize": "scale factor",
                "resize.scale": 2.0,
                "steps": steps,
                "restoration_scale": 0.5,
                "seed": seed,
                "color_alignment": "adain",
                "tiling": "auto",
                "weak_strength": 0.15,
                "guidance_start": 0.0,
                "guidance_end": 1.0,
                "posterior": "mean",
                "vae_tile_size": 0,
            },
        },
        "5": {"class_type": "PreviewImage", "inputs": {"images": [NODE, 0]}},
    }


@pytest.mark.skipif(not READABLE, reason="reads the server's memory from /proc (Linux)")
def test_cancel_during_a_tiled_multi_step_run(server: ComfyServer):
    save_multi_step(server)
    server.client.run(restoration(seed=0, steps=1, width=128))
    before = resident_megabytes(server)

    seen: list[float] = []
    cancelled_at: list[float] = []

    def cancel_in_the_third_step(kind: str, data: dict) -> None:
        if kind != "progress" or data["node"] != NODE:
            return
        seen.append(data["value"] / data["max"])
        if seen[-1] > 2 / STEPS and not cancelled_at:
            server.client.interrupt()
            cancelled_at.append(seen[-1])

    with pytest.raises(PromptInterrupted, match="RestorationCFGSampler"):
        server.client.run(restoration(seed=1, steps=STEPS, width=128), on_message=cancel_in_the_third_step)
    # How many more steps are reported until the request arrives is a matter of speed; the last one is not.
    assert cancelled_at and max(seen) < 1

    again = server.client.run(restoration(seed=1, steps=2, width=128))
    (file,) = again.images("5")
    assert server.client.image(file).size == (256, 192)
    assert again.progress(NODE)[-1][0] == again.progress(NODE)[-1][1]
    require_freed(server, before + 100)
