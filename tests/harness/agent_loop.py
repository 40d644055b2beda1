"""Graphs with an Agent Refinement Loop, in API form, and what a run of one did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from comfy_server import ComfyClient, PromptResult

from . import checkpoints
from .chat_server import ChatRequest
from .waiting import HANG

Graph = dict[str, dict[str, Any]]

KEY = "sk-loop-0123456789abcdef"
CONTEXT_WIDTH, POOLED_WIDTH = 64, 32
MODEL, VAE = "tiny_fill.safetensors", "tiny_taesd.safetensors"


def save_models(models: Path) -> None:
    """A tiny FLUX Fill and a TAESD for its latents."""
    network = checkpoints.flux(
        fill_model=True, double_blocks=1, single_blocks=1, context_width=CONTEXT_WIDTH, pooled_width=POOLED_WIDTH
    )
    for folder, name, content in (
        ("diffusion_models", MODEL, network),
        ("vae", VAE, checkpoints.taesd()),
    ):
        (models / folder).mkdir(parents=True, exist_ok=True)
        save_file(content, models / folder / name)


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def agent(url: str) -> dict[str, Any]:
    return node(
        "RealISR_ChatEndpoint",
        base_url=url,
        model="seer",
        key_variable="REALISR_TEST_KEY",
        temperature=0.2,
        max_tokens=500,
        timeout=HANG,
        retries=0,
        image_detail="auto",
        image_size=512,
        jpeg_quality=95,
    )


def loop(rounds: int, image: list[Any], **options: Any) -> dict[str, Any]:
    defaults = {"vlm": ["agent", 0], "seed": 0, "max_length": 500, "on_failure": "stop", "instruction": ""}
    return node("RealISR_AgentRefinementLoop", loop=["start", 3], image=image, rounds=rounds, **(defaults | options))


def around(body: Graph, result: list[Any], url: str, rounds: int, prompt: str = "a house", **options: Any) -> Graph:
    """A loop around nodes that take ["start", 0] (prompt), ["start", 1] (image) and ["start", 2] (round)."""
    return {
        "lq": node("RealISRTest_RandomImage", seed=1, width=24, height=16, batch=1),
        "start": node("RealISR_AgentRefinementStart", image=["lq", 0], prompt=prompt),
        "agent": agent(url),
        **body,
        "loop": loop(rounds, result, **options),
        "save": node("SaveImage", images=["loop", 0], filename_prefix="candidate"),
        "prompts": node("PreviewAny", source=["loop", 1]),
        "report": node("PreviewAny", source=["loop", 2]),
    }


def tint(url: str, rounds: int, body: Graph | None = None, **options: Any) -> Graph:
    """A loop whose restoration takes no time: the prompt sets a colour."""
    restoration = {"restored": node("RealISRTest_TintByText", image=["start", 1], text=["start", 0])}
    return around(restoration | (body or {}), ["restored", 0], url, rounds, **options)


def restoration(url: str, rounds: int, seed: int = 5, **options: Any) -> Graph:
    """A loop around VICR's restoration on the models of `save_models`: FLUX Fill completes a diptych."""
    body = {
        "unet": node("UNETLoader", unet_name=MODEL, weight_dtype="default"),
        "vae": node("VAELoader", vae_name=VAE),
        "builder": node(
            "RealISR_DiptychBuilder",
            **{"image": ["start", 1], "resize": "scale factor", "resize.scale": 2.0, "layout": "side by side"},
        ),
        "text": node(
            "RealISRTest_TextConditioning",
            text=["start", 0],
            tokens=4,
            width=CONTEXT_WIDTH,
            pooled_width=POOLED_WIDTH,
        ),
        "guidance": node("FluxGuidance", conditioning=["text", 0], guidance=30.0),
        "fill": node(
            "InpaintModelConditioning",
            positive=["guidance", 0],
            negative=["guidance", 0],
            vae=["vae", 0],
            pixels=["builder", 0],
            mask=["builder", 1],
            noise_mask=False,
        ),
        "noise": node("RandomNoise", noise_seed=seed),
        "guider": node("BasicGuider", model=["unet", 0], conditioning=["fill", 0]),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node(
            "RealISR_FLUXFillSigmas", latent=["fill", 2], steps=2, denoise=1.0, base_shift=0.5, max_shift=1.15
        ),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            latent_image=["fill", 2],
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "crop": node("RealISR_DiptychCrop", image=["decode", 0], diptych=["builder", 3]),
        "preview": node("PreviewImage", images=["crop", 0]),
    }
    return around(body, ["crop", 0], url, rounds, **options)


BODY = {"text", "guidance", "fill", "guider", "sigmas", "sample", "decode", "crop", "preview"}
"""The nodes of `restoration` that a round runs again."""


def revised(prompt: str, changes: str = "", reason: str = "") -> str:
    """An agent's answer."""
    return json.dumps({"prompt": prompt, "changes": changes, "reason": reason})


def numbered(request: ChatRequest) -> str:
    """An agent that adds one cue to the prompt it is given, another each time."""
    previous = previous_prompt(request)
    return revised(f"{previous}, cue {previous.count('cue') + 1}", f"added a cue to {previous}", "it was blurred")


def previous_prompt(request: ChatRequest) -> str:
    """The prompt that the refiner asks the agent to revise."""
    mark = "Previous prompt:\n"
    (text,) = [text for text in request.texts if mark in text]
    return text.partition(mark)[2].strip()


def initial_prompt(request: ChatRequest) -> str:
    """The anchor that the refiner tells the agent, from between its mark and the previous prompt's."""
    (text,) = [text for text in request.texts if "Initial prompt:\n" in text]
    return text.partition("Initial prompt:\n")[2].partition("Previous prompt:\n")[0].strip()


def executed(result: PromptResult) -> list[str]:
    """Ids of the nodes that ran, in order; those whose results were cached are not among them."""
    seen = [data["node"] for kind, data in result.messages if kind == "executing" and data["node"]]
    return list(dict.fromkeys(seen))


def candidates(client: ComfyClient, result: PromptResult) -> list[Image.Image]:
    return [client.image(file).convert("RGB") for file in result.images("save")]


def prompts(result: PromptResult) -> list[str]:
    return result.outputs["prompts"]["text"]


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean())
