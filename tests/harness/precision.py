"""Every method in other precisions: workflows and files for them, and how far a picture is from the one in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from comfy_server import ComfyServer
from demo import node_of

from .methods import Graph, inputs_of

STORED = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions that the host's loaders take from the file."""

WEIGHTS = ("fp32", "bf16", "fp16", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")

LIMITS = {"fp32": 1e-4, "bf16": 0.03, "fp16": 0.01, "fp8_e4m3fn": 0.35, "fp8_e4m3fn_fast": 0.35, "fp8_e5m2": 0.6}
"""The largest distance from float32 of each precision."""

STORED_FILES = (
    "diffusion_models/flux1-dev.safetensors",
    "diffusion_models/flux1-fill-dev.safetensors",
    "model_patches/vicr_bridge.safetensors",
    "loras/vicr_lora.safetensors",
    "loras/dreamsr_acceleration_lora.safetensors",
)


def save_stored_files(models: Path) -> None:
    """The FLUX files again in the precisions of STORED."""
    for path in STORED_FILES:
        with safe_open(models / path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata()
        for name, dtype in STORED.items():
            stored = {key: value.to(dtype) for key, value in tensors.items()}
            save_file(stored, (models / path).with_suffix(f".{name}.safetensors"), metadata)


def in_precision(graph: Graph, weights: str) -> Graph | None:
    """The graph with its networks' weights in a precision of WEIGHTS; None where no loader offers it."""
    changed: Graph = json.loads(json.dumps(graph))
    for node in changed.values():
        inputs = node["inputs"]
        if node["class_type"] == "RealISR_LoadARRestorer" and weights == "fp8_e5m2":
            return None
        if node["class_type"] == "UNETLoader":
            inputs["weight_dtype"] = weights if weights.startswith("fp8") else "default"
        elif "weight_dtype" in inputs:
            inputs["weight_dtype"] = weights
        if weights in STORED:
            for name in ("unet_name", "bridge_name", "lora_name"):
                if name in inputs:
                    inputs[name] = inputs[name].replace(".safetensors", f".{weights}.safetensors")
    return changed


def greedy(graph: Graph) -> Graph:
    """PURE without chance, for a token drawn otherwise changes all that come after it."""
    if any(node["class_type"] == "RealISR_ARTokenRestorer" for node in graph.values()):
        inputs_of(graph, "RealISR_ARTokenRestorer").update({"sampling.k_min": 1, "sampling.k_max": 1})
    return graph


def unrounded(server: ComfyServer, graph: Graph) -> np.ndarray:
    """Run a graph; what its Save Image gets, in float32."""
    changed: Graph = json.loads(json.dumps(graph))
    keep: dict[str, Any] = changed[node_of(changed, "SaveImage")]
    keep["class_type"] = "RealISRTest_KeepImage"
    keep["inputs"] = {"image": keep["inputs"]["images"], "name": "kept"}
    server.client.run(changed)
    return np.load(server.base / "output" / "kept.npy")


def distance(picture: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square of the difference, in units of the exact picture's standard deviation; infinite for NaN."""
    if picture.shape != exact.shape or not np.isfinite(picture).all():
        return float("inf")
    return float(np.sqrt(np.square(picture - exact).mean()) / exact.std())
