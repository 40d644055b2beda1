"""VICR's shipped workflows on a real ComfyUI: small random weights under the released names, a real chat endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from _pack import ROOT
from comfy_server import ComfyServer
from demo import node_of
from harness import checkpoints
from harness.agent_loop import initial_prompt, numbered, previous_prompt
from harness.chat_server import ChatServer
from harness.vlm import save_tiny_llava
from templates import read as read_ui
from templates import templates

API = ROOT / "workflows" / "api"
SIZES = {"context_width": 64, "pooled_width": 768}
HIDDEN = 256
NEW_BRIDGE = "vision_context_bridge_new"


@pytest.fixture(scope="module")
def files(server: ComfyServer) -> None:
    """What the workflows' loaders name. Text encoders and CLIP ViT-L have fixed sizes, and test nodes stand in."""
    fill = checkpoints.flux(3, fill_model=True, double_blocks=1, single_blocks=1, **SIZES)
    bridge = checkpoints.fill(bridge_shapes(), 4) | {"scale": fill["img_in.bias"].new_tensor(0.5)}
    for path, content in (
        ("diffusion_models/flux1-fill-dev.safetensors", fill),
        ("vae/ae.safetensors", checkpoints.taesd()),
        ("loras/vicr_lora.safetensors", checkpoints.fill(lora_shapes(), 5)),
        ("model_patches/vicr_bridge.safetensors", bridge),
    ):
        # A file that another module made may be in use: loaded models are mapped to it.
        if not (server.models / path).exists():
            (server.models / path).parent.mkdir(parents=True, exist_ok=True)
            save_file(content, server.models / path)
    save_tiny_llava(server.models / "LLM" / "llava-1.5-7b-hf")


def lora_shapes() -> checkpoints.Shapes:
    """Rank 4, in PEFT's names."""
    layers = {
        "x_embedder": (384, HIDDEN),
        "transformer_blocks.0.attn.to_q": (HIDDEN, HIDDEN),
        "single_transformer_blocks.0.proj_mlp": (HIDDEN, 4 * HIDDEN),
    }
    for layer, (inputs, outputs) in layers.items():
        yield f"transformer.{layer}.lora_A.weight", (4, inputs)
        yield f"transformer.{layer}.lora_B.weight", (outputs, 4)


def bridge_shapes() -> checkpoints.Shapes:
    yield from checkpoints.norm("norm", 768)
    yield from checkpoints.linear("proj_in", 768, HIDDEN)
    yield from checkpoints.linear("proj_out", HIDDEN, HIDDEN)


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with ChatServer(default=numbered) as running:
        yield running


def workflow(name: str, server: ComfyServer, size: tuple[int, int]) -> dict[str, Any]:
    """A workflow in API form on a small picture, with test nodes for the big encoders and three steps."""
    graph: dict[str, Any] = json.loads((API / f"{name}.json").read_text(encoding="utf-8"))
    width, height = size
    ramp = np.stack(np.broadcast_arrays(np.linspace(0, 255, width), np.linspace(255, 0, height)[:, None], 90.0), -1)
    picture = server.client.upload_image(Image.fromarray(ramp.astype(np.uint8)), f"vicr_{width}x{height}.png")
    graph[node_of(graph, "LoadImage")]["inputs"]["image"] = picture
    graph[node_of(graph, "RealISR_FLUXFillSigmas")]["inputs"]["steps"] = 3
    text = graph[node_of(graph, "CLIPTextEncode")]
    text["class_type"] = "RealISRTest_TextConditioning"
    text["inputs"] = {"text": text["inputs"]["text"], "tokens": 4, "width": 64, "pooled_width": 768}
    seen = graph[node_of(graph, "CLIPVisionEncode")]
    seen["class_type"] = "RealISRTest_ProjectedImageEmbedding"
    seen["inputs"] = {"image": seen["inputs"]["image"], "seed": 0, "width": 768}
    for unused in ("DualCLIPLoader", "CLIPVisionLoader"):
        del graph[node_of(graph, unused)]
    return graph


def saved(server: ComfyServer, graph: dict[str, Any]) -> np.ndarray:
    (file,) = server.client.run(graph).images(node_of(graph, "SaveImage"))
    return np.asarray(server.client.image(file), np.int16)


def test_basic_restores_at_the_size_asked_for(server: ComfyServer, files):
    result = saved(server, workflow("vicr_basic", server, (37, 22)))
    assert result.shape == (44, 74, 3)
    assert result.std() > 1


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        ("LoraLoaderModelOnly", {"strength_model": 0.0}),
        ("RealISR_CLIPVisionContextBridge", {"strength": 0.0}),
        ("CLIPTextEncode", {"text": "another prompt"}),
        ("RandomNoise", {"noise_seed": 43}),
    ],
)
def test_every_part_of_basic_has_a_say(server: ComfyServer, files, node: str, inputs: dict[str, Any]):
    graph = workflow("vicr_basic", server, (24, 16))
    changed = json.loads(json.dumps(graph))
    name = "RealISRTest_TextConditioning" if node == "CLIPTextEncode" else node
    changed[node_of(changed, name)]["inputs"].update(inputs)
    assert np.abs(saved(server, graph) - saved(server, changed)).max() > 0


def test_tiled_covers_a_large_canvas_and_equals_basic_on_one_tile(server: ComfyServer, files):
    tiled = workflow("vicr_tiled", server, (40, 28))
    assert tiled[node_of(tiled, "RealISR_DiptychTiles")]["inputs"]["tile_size"] == 1024
    tiled[node_of(tiled, "RealISR_DiptychTiles")]["inputs"].update(tile_size=64, tile_overlap=32)
    assert saved(server, tiled).shape == (112, 160, 3)

    one = workflow("vicr_tiled", server, (24, 16))
    one[node_of(one, "RealISR_DiptychBuilder")]["inputs"]["resize.scale"] = 2.0
    whole = workflow("vicr_basic", server, (24, 16))
    assert np.abs(saved(server, one) - saved(server, whole)).max() <= 1


def test_full_captions_refines_and_chooses(server: ComfyServer, files, chat: ChatServer):
    graph = workflow("vicr_full", server, (64, 48))
    graph[node_of(graph, "RealISR_ChatEndpoint")]["inputs"].update(base_url=chat.url, key_variable="REALISR_UNSET_KEY")
    assert graph[node_of(graph, "RealISR_NRIQABestOfN")]["inputs"]["metrics"] == "liqe, musiq, maniqa, clipiqa"
    # The four default metrics need gigabytes of weights; this one needs none.
    graph[node_of(graph, "RealISR_NRIQABestOfN")]["inputs"]["metrics"] = "piqe"
    rounds = graph[node_of(graph, "RealISR_AgentRefinementLoop")]["inputs"]["rounds"]
    # As the frontend names nodes of a subgraph, which VICR's are: the loop repeats what it finds by these ids.
    names = {name: f"33:{name}" if 10 <= int(name) <= 23 else name for name in graph}
    graph = {names[name]: node for name, node in graph.items()}
    for node in graph.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in names:
                node["inputs"][name] = [names[value[0]], value[1]]
    result = server.client.run(graph)
    assert [len(request.images) for request in chat.requests] == [2] * (rounds - 1), "the agent does not caption"
    caption = previous_prompt(chat.requests[0])
    assert caption
    assert [initial_prompt(request) for request in chat.requests] == [caption] * (rounds - 1)
    candidates = [
        np.asarray(server.client.image(file), np.int16) for file in result.images(node_of(graph, "PreviewImage"))
    ]
    assert len(candidates) == rounds
    assert all(np.abs(a - b).max() > 0 for i, a in enumerate(candidates) for b in candidates[:i])
    (file,) = result.images(node_of(graph, "SaveImage"))
    best = np.asarray(server.client.image(file), np.int16)
    assert best.shape == (96, 128, 3)
    assert any(np.array_equal(best, candidate) for candidate in candidates)


def test_a_new_bridge_is_written_and_changes_nothing(server: ComfyServer, files):
    """Its last projection is zero; the file is one that the loader takes."""
    graph = json.loads((API / f"{NEW_BRIDGE}.json").read_text(encoding="utf-8"))
    (path,) = server.client.run(graph).outputs[node_of(graph, "RealISR_NewVisionContextBridge")]["text"]
    weights = load_file(path)
    assert weights["proj_in.weight"].shape == (HIDDEN, 768) and weights["proj_out.weight"].shape == (HIDDEN, HIDDEN)
    assert weights["proj_in.weight"].any() and not weights["proj_out.weight"].any()


def test_the_notes_name_the_files_of_the_loaders():
    for drawn in [read_ui(each.path) for each in templates() if each.name.startswith("vicr_")]:
        notes = " ".join(node["widgets_values"][0] for node in drawn["nodes"] if node["type"] == "MarkdownNote")
        chosen = [
            value
            for node in drawn["nodes"]
            if "Load" in node["type"] and node["type"] != "LoadImage"
            for value in node["widgets_values"]
            if Path(str(value)).suffix == ".safetensors"
        ]
        assert len(chosen) == 7
        assert [value for value in chosen if value not in notes] == []
