"""The methods that can be compared, as the parts of the shipped API workflows that lie between photo and result."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_execution.graph import DynamicPrompt

from ..graph_expansion import Link, as_link, upstream

WORKFLOWS = Path(__file__).resolve().parent.parent.parent / "workflows" / "api"

Graph = dict[str, dict[str, Any]]

PHOTO = "photo"
"""Id of the node that stands for the photo in a branch."""

FOLDERS = {
    "UNETLoader": "diffusion_models",
    "DualCLIPLoader": "text_encoders",
    "VAELoader": "vae",
    "LoraLoaderModelOnly": "loras",
    "CLIPVisionLoader": "clip_vision",
    "UpscaleModelLoader": "upscale_models",
}
"""Folder under models/ that a loader of ComfyUI reads from."""


@dataclass(frozen=True)
class Method:
    name: str
    """What its toggle is called."""
    label: str
    workflow: str
    """Of workflows/api; empty for what needs none."""


METHODS = (
    Method("bicubic", "Bicubic", ""),
    Method("vosr_nano", "VOSR nano", "vosr_nano_restore"),
    Method("vosr", "VOSR 0.5B one-step", "vosr_one_step"),
    Method("vicr", "VICR", "vicr_basic"),
    Method("dreamsr", "DreamSR", "dreamsr_restore"),
    Method("pure", "PURE", "pure_tiled"),
)
UPSCALE_MODEL = "upscale_model"


@dataclass(frozen=True)
class Branch:
    """Nodes in API form in which the node PHOTO gives the photo, and the output that holds the result."""

    graph: Graph
    result: Link


def shipped_branch(workflow: str, scale: float, seed: int, prompt: str) -> Branch:
    """What a shipped workflow does between Load Image and Save Image, at this scale and seed.

    prompt: in place of the workflow's own text; empty leaves it. Nodes that only show something are left out.
    """
    whole: Graph = json.loads((WORKFLOWS / f"{workflow}.json").read_text(encoding="utf-8"))
    photos = {node_id for node_id, node in whole.items() if node["class_type"] == "LoadImage"}
    (save,) = (node for node in whole.values() if node["class_type"] == "SaveImage")
    made, output = save["inputs"]["images"]
    graph: Graph = {}
    for node_id in upstream(DynamicPrompt(whole), [made]).keys() - photos:
        node = whole[node_id]
        inputs = {}
        for name, value in node["inputs"].items():
            link = as_link(value)
            if link is None or link[0] not in photos:
                inputs[name] = value
            elif link[1] == 0:  # The other is its mask: a comparison is of opaque pictures.
                inputs[name] = [PHOTO, 0]
        adjust(node["class_type"], inputs, scale, seed, prompt)
        graph[node_id] = {"class_type": node["class_type"], "inputs": inputs}
    return Branch(graph, (made, output))


def adjust(class_type: str, inputs: dict[str, Any], scale: float, seed: int, prompt: str) -> None:
    """Set what a comparison has one of, in the inputs of a node that has such a widget."""
    if isinstance(inputs.get("resize"), str):
        for name in [name for name in inputs if name.startswith("resize")]:
            del inputs[name]
        inputs |= {"resize": "scale factor", "resize.scale": scale}
    for name in ("seed", "noise_seed"):
        if isinstance(inputs.get(name), int):
            inputs[name] = seed
    if prompt.strip() and class_type == "CLIPTextEncode" and isinstance(inputs.get("text"), str):
        inputs["text"] = prompt


def bicubic_branch(scale: float) -> Branch:
    inputs = {"image": [PHOTO, 0], "resize": "scale factor", "resize.scale": scale}
    return Branch({"upscale": {"class_type": "RealISR_UpscaleForRestoration", "inputs": inputs}}, ("upscale", 0))


def upscale_model_branch(model_name: str) -> Branch:
    """Any model of the host's own upscaler node, at the model's own factor."""
    return Branch(
        {
            "load": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": model_name}},
            "upscale": {
                "class_type": "ImageUpscaleWithModel",
                "inputs": {"upscale_model": ["load", 0], "image": [PHOTO, 0]},
            },
        },
        ("upscale", 0),
    )


def make_branch(name: str, scale: float, seed: int, prompt: str, upscale_model: str) -> Branch:
    """The branch of a method of METHODS, or of UPSCALE_MODEL."""
    if name == UPSCALE_MODEL:
        return upscale_model_branch(upscale_model)
    method = next(method for method in METHODS if method.name == name)
    return shipped_branch(method.workflow, scale, seed, prompt) if method.workflow else bicubic_branch(scale)


async def obstacles(branch: Branch) -> list[str]:
    """Why the host would refuse to run a branch, a line per reason: as a rule the files that are not there.

    Asks the host's own validation of prompts, so that every loader speaks for itself.
    """
    from execution import validate_inputs

    # Stands in for the photo, which is there.
    photo = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}}
    validated: dict[str, tuple[bool, list[dict[str, Any]], str]] = {}
    await validate_inputs("", {**branch.graph, PHOTO: photo}, branch.result[0], validated)
    found: list[str] = []
    for node_id, (_, reasons, _) in validated.items():
        for reason in reasons:
            found += told(branch.graph[node_id]["class_type"], reason)
    return list(dict.fromkeys(found))


def told(class_type: str, reason: Mapping[str, Any]) -> list[str]:
    """One reason in words: the files, where that is what is missing. Nothing for what only repeats one further up."""
    given = reason.get("extra_info", {})
    if reason["type"] == "exception_during_inner_validation":
        return []
    if reason["type"] == "value_not_in_list":
        folder = FOLDERS.get(class_type)
        return [f"models/{folder}/{given['received_value']}" if folder else str(given["received_value"])]
    details = str(reason.get("details") or reason["message"])
    # What our own loaders say; where to fetch it is on their checklists.
    files = [f"models/{folder}/{name}" for name, folder in re.findall(r"(\S+) is not in models/(\w+)\.", details)]
    return files or [details.partition(" - ")[2] or details]
