"""Every method as a workflow on a running ComfyUI that is done in about a second: the shipped graph, small files.

save_files(server.models)
graph = graphs(server)["PURE"]
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from _pack import ROOT
from comfy_client import HTTPClient
from comfy_server import ComfyClient
from demo import node_of

from . import checkpoints, pure, released
from .dreamsr import METADATA_KEY, control_config, control_weights

API = ROOT / "workflows" / "api"
SIZES: dict[str, Any] = {"double_blocks": 2, "single_blocks": 1, "context_width": 64, "pooled_width": 768}
HIDDEN = 256

Graph = dict[str, Any]


def lora_shapes(inputs: int) -> checkpoints.Shapes:
    """A LoRA of rank 4 in PEFT's names, for a FLUX that reads `inputs` numbers per token."""
    for layer, (before, after) in {
        "x_embedder": (inputs, HIDDEN),
        "transformer_blocks.0.attn.to_v": (HIDDEN, HIDDEN),
    }.items():
        yield f"transformer.{layer}.lora_A.weight", (4, before)
        yield f"transformer.{layer}.lora_B.weight", (after, 4)


def save_flux_files(models: Path) -> None:
    """What the FLUX workflows' loaders name, but for text encoders and CLIP ViT-L, whose sizes are fixed."""
    control = control_weights(control_config(text_width=64))
    for path, content, metadata in (
        ("diffusion_models/flux1-dev.safetensors", checkpoints.flux(5, **SIZES), None),
        ("diffusion_models/flux1-fill-dev.safetensors", checkpoints.flux(3, fill_model=True, **SIZES), None),
        ("vae/ae.safetensors", checkpoints.taesd(), None),
        ("controlnet/dreamsr_mm_controlnet.safetensors", control, {METADATA_KEY: '{"dit_blocks": [0, 1]}'}),
        ("loras/dreamsr_acceleration_lora.safetensors", checkpoints.fill(lora_shapes(64), 6), None),
        ("loras/vicr_lora.safetensors", checkpoints.fill(lora_shapes(384), 7), None),
        ("model_patches/vicr_bridge.safetensors", checkpoints.vision_context_bridge(width=HIDDEN), None),
    ):
        # A file that another test made may be in use: loaded models are mapped to it.
        if not (models / path).exists():
            (models / path).parent.mkdir(parents=True, exist_ok=True)
            save_file(content, models / path, metadata)


def save_files(models: Path) -> None:
    """The files of every method."""
    released.save_released_files(models)
    save_flux_files(models)
    pure.save_released_files(models)


def read(name: str) -> Graph:
    return json.loads((API / f"{name}.json").read_text(encoding="utf-8"))


def upload_ramp(client: HTTPClient, width: int, height: int) -> str:
    """A picture of smooth slopes; the name to load it by."""
    ramp = np.stack(np.broadcast_arrays(np.linspace(0, 255, width), np.linspace(255, 0, height)[:, None], 90.0), -1)
    png = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(png, "PNG")
    return client.upload_bytes(png.getvalue(), f"ramp_{width}x{height}.png")


def with_stand_ins(graph: Graph) -> Graph:
    """Test nodes for the encoders that have no small form, and nothing that only shows."""
    graph = {key: node for key, node in graph.items() if node["class_type"] not in ("ImageCompare", "PreviewImage")}
    for node in graph.values():
        if node["class_type"] in ("CLIPTextEncode", "RealISR_EncodePatchPrompts"):
            told = node["inputs"].get("text", node["inputs"].get("prompts"))
            node["class_type"] = "RealISRTest_TextConditioning"
            node["inputs"] = {"text": told, "tokens": 4, "width": 64, "pooled_width": 768}
        if node["class_type"] == "CLIPVisionEncode":
            node["class_type"] = "RealISRTest_ProjectedImageEmbedding"
            node["inputs"] = {"image": node["inputs"]["image"], "seed": 0, "width": 768}
    return {
        key: node for key, node in graph.items() if node["class_type"] not in ("DualCLIPLoader", "CLIPVisionLoader")
    }


def inputs_of(graph: Graph, node: str) -> dict[str, Any]:
    return graph[node_of(graph, node)]["inputs"]


def vosr_one_step() -> Graph:
    graph = read("vosr_one_step")
    inputs_of(graph, "RealISR_RestorationCFGSampler")["resize.scale"] = 2.0
    return graph


def vosr_guided(steps: int = 3) -> Graph:
    graph = read("vosr_multi_step")
    inputs_of(graph, "RealISR_UpscaleForRestoration")["resize.scale"] = 2.0
    inputs_of(graph, "BasicScheduler")["steps"] = steps
    return graph


def vicr(steps: int = 4) -> Graph:
    graph = read("vicr_basic")
    inputs_of(graph, "RealISR_FLUXFillSigmas")["steps"] = steps
    return graph


def dreamsr(steps: int = 3) -> Graph:
    graph = read("dreamsr_restore")
    inputs_of(graph, "RealISR_DreamSRRestore").update(
        {"resize.width": 96, "tile_size": 64, "overlap": 32, "texture_steps": steps}
    )
    return graph


def pure_tokens() -> Graph:
    graph = read("pure_512")
    inputs_of(graph, "RealISR_ARTokenRestorer").update(
        {"resize.width": 48, "tiling": "custom", "tiling.tile_size": 32, "tiling.tile_overlap": 8}
    )
    return graph


METHODS: dict[str, Callable[[], Graph]] = {
    "VOSR, one step": vosr_one_step,
    "VOSR, guided": vosr_guided,
    "VICR": vicr,
    "DreamSR": dreamsr,
    "PURE": pure_tokens,
}

SEEDS = ("seed", "noise_seed")

LOADERS = (
    "RealISR_LoadVOSRModel",
    "RealISR_LoadVOSRVAE",
    "RealISR_LoadVOSRVisionEncoder",
    "RealISR_LoadVisionContextBridge",
    "RealISR_LoadMMControlNet",
    "RealISR_LoadARRestorer",
    "UNETLoader",
    "VAELoader",
)
"""Nodes whose output holds weights."""


def graphs(client: HTTPClient, width: int = 24, height: int = 16) -> dict[str, Graph]:
    """method -> its graph on a small picture, with one Save Image. Needs `save_files` and the test nodes."""
    picture = upload_ramp(client, width, height)
    made = {}
    for name, build in METHODS.items():
        graph = with_stand_ins(build())
        inputs_of(graph, "LoadImage")["image"] = picture
        inputs_of(graph, "SaveImage")["filename_prefix"] = "".join(filter(str.isalnum, name))
        made[name] = graph
    return made


def drop(client: ComfyClient, results: bool = True) -> None:
    """Have the server unload its models and, with `results`, forget what it made, before anything else runs.

    It looks at such wishes after a prompt, so one that makes nothing follows.
    """
    client.post("/free", {"unload_models": True, "free_memory": results})
    client.run({"1": {"class_type": "RealISRTest_GiveBack", "inputs": {}}})


def with_seed(graph: Graph, seed: int) -> Graph:
    """A copy that draws from another seed: every node after the seed runs again."""
    copy = json.loads(json.dumps(graph))
    for node in copy.values():
        for name in SEEDS:
            if isinstance(node["inputs"].get(name), int):
                node["inputs"][name] = seed
    return copy
