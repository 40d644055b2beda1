"""DreamSR's shipped workflows on a real ComfyUI: small random weights, real file names, a real chat endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from _pack import ROOT
from comfy_server import ComfyServer
from demo import node_of
from harness import checkpoints
from harness.chat_server import ChatRequest, ChatServer
from harness.dreamsr import METADATA_KEY
from harness.methods import HIDDEN, SIZES, save_flux_files
from harness.released import save_released_files
from harness.vlm import save_tiny_llava
from templates import template

API = ROOT / "workflows" / "api"
WORKFLOWS = (
    "dreamsr_4k",
    "dreamsr_restore",
    "dreamsr_tile_controlnet",
    "mm_controlnet_new",
    "patch_prompts_edited",
    "vicr_patch_prompts",
    "vicr_tile_captions",
    "vosr_dreamsr_hybrid",
)


@pytest.fixture(scope="module")
def files(server: ComfyServer) -> None:
    """What the workflows' loaders name. Text encoders and CLIP ViT-L have fixed sizes, and test nodes stand in."""
    save_released_files(server.models)
    save_flux_files(server.models)
    path = server.models / "controlnet" / "flux1-dev-controlnet-upscaler.safetensors"
    if not path.exists():  # as above: it may be in use
        save_file(upscaler_controlnet(), path)
    save_tiny_llava(server.models / "LLM" / "llava-1.5-7b-hf")


def upscaler_controlnet() -> checkpoints.StateDict:
    """A FLUX ControlNet in diffusers' names, as the published upscaler has them."""
    whole = checkpoints.flux_diffusers(
        checkpoints.flux(
            8, double_blocks=1, single_blocks=0, **{name: SIZES[name] for name in ("context_width", "pooled_width")}
        )
    )
    kept = {name: value for name, value in whole.items() if not name.startswith(("proj_out", "norm_out"))}

    def outputs() -> checkpoints.Shapes:
        yield from checkpoints.linear("controlnet_x_embedder", 64, HIDDEN)
        yield from checkpoints.linear("controlnet_blocks.0", HIDDEN, HIDDEN)

    return kept | checkpoints.fill(outputs(), 9)


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    """A model that describes by counting: every picture gets a text of its own."""

    def described(_: ChatRequest) -> str:
        return json.dumps({"prompt": f"picture {len(running.requests)}"})

    with ChatServer(default=described) as running:
        yield running


def workflow(name: str, server: ComfyServer, size: tuple[int, int]) -> dict[str, Any]:
    """A workflow in API form on a small picture, with test nodes for the big encoders."""
    graph: dict[str, Any] = json.loads((API / f"{name}.json").read_text(encoding="utf-8"))
    width, height = size
    ramp = np.stack(np.broadcast_arrays(np.linspace(0, 255, width), np.linspace(255, 0, height)[:, None], 90.0), -1)
    picture = server.client.upload_image(Image.fromarray(ramp.astype(np.uint8)), f"dreamsr_{width}x{height}.png")
    graph[node_of(graph, "LoadImage")]["inputs"]["image"] = picture
    for node in list(graph.values()):
        if node["class_type"] in ("CLIPTextEncode", "RealISR_EncodePatchPrompts"):
            told = node["inputs"].get("text", node["inputs"].get("prompts"))
            node["class_type"] = "RealISRTest_TextConditioning"
            node["inputs"] = {"text": told, "tokens": 4, "width": 64, "pooled_width": 768}
        if node["class_type"] == "CLIPVisionEncode":
            node["class_type"] = "RealISRTest_ProjectedImageEmbedding"
            node["inputs"] = {"image": node["inputs"]["image"], "seed": 0, "width": 768}
    unused = [key for key, node in graph.items() if node["class_type"] in ("DualCLIPLoader", "CLIPVisionLoader")]
    return {key: node for key, node in graph.items() if key not in unused}


def inputs_of(graph: dict[str, Any], node: str) -> dict[str, Any]:
    return graph[node_of(graph, node)]["inputs"]


def saved(server: ComfyServer, graph: dict[str, Any]) -> np.ndarray:
    (file,) = server.client.run(graph).images(node_of(graph, "SaveImage"))
    return np.asarray(server.client.image(file), np.int16)


def smaller(graph: dict[str, Any], width: int, tile: int = 64, overlap: int = 32) -> None:
    """A target and tiles that a CPU is done with in seconds."""
    for node in graph.values():
        if "resize.width" in node["inputs"]:
            node["inputs"]["resize.width"] = width
    inputs_of(graph, "RealISR_TileGrid").update(tile_size=tile, overlap=overlap)


def test_4k_wired(server: ComfyServer, files, chat: ChatServer):
    """As shipped but for width, tiles and steps: one request for the picture and one for each tile."""
    graph = workflow("dreamsr_4k", server, (36, 24))
    assert inputs_of(graph, "RealISR_UpscaleForRestoration")["resize.width"] == 3840
    step = inputs_of(graph, "RealISR_AccelerationLoRAStep")
    assert (step["texture_start"], step["texture_steps"]) == (0.8, 16)
    smaller(graph, 144)
    step["texture_steps"] = 3
    inputs_of(graph, "RealISR_ChatEndpoint").update(base_url=chat.url, key_variable="REALISR_UNSET_KEY")
    result = server.client.run(graph)
    tiles = 4 * 2
    assert len(chat.requests) == 1 + tiles
    (file,) = result.images(node_of(graph, "SaveImage"))
    image = np.asarray(server.client.image(file), np.int16)
    assert image.shape == (96, 144, 3)
    assert image.std() > 1

    inputs_of(graph, "RandomNoise")["noise_seed"] = 43
    assert np.abs(saved(server, graph) - image).max() > 0
    assert len(chat.requests) == 1 + tiles


def test_an_ordinary_controlnet_in_tiles(server: ComfyServer, files):
    graph = workflow("dreamsr_tile_controlnet", server, (40, 24))
    smaller(graph, 160)
    inputs_of(graph, "KSampler")["steps"] = 4
    image = saved(server, graph)
    assert image.shape == (96, 160, 3)
    inputs_of(graph, "ControlNetApplyAdvanced")["strength"] = 0.0
    assert np.abs(saved(server, graph) - image).max() > 0


def test_vosr_cleans_and_flux_adds_texture(server: ComfyServer, files):
    graph = workflow("vosr_dreamsr_hybrid", server, (40, 24))
    smaller(graph, 160)
    inputs_of(graph, "BasicScheduler")["steps"] = 4
    image = saved(server, graph)
    assert image.shape == (96, 160, 3)
    inputs_of(graph, "BasicScheduler")["denoise"] = 0.6
    assert np.abs(saved(server, graph) - image).max() > 0


def test_patch_prompts_on_diptych_tiles(server: ComfyServer, files, chat: ChatServer):
    graph = workflow("vicr_patch_prompts", server, (32, 24))
    grid, tiles = inputs_of(graph, "RealISR_TileGrid"), inputs_of(graph, "RealISR_DiptychTiles")
    assert (grid["tile_size"], grid["overlap"]) == (tiles["tile_size"], tiles["tile_overlap"])
    smaller(graph, 128)
    tiles.update(tile_size=64, tile_overlap=32)
    inputs_of(graph, "RealISR_FLUXFillSigmas")["steps"] = 2
    inputs_of(graph, "RealISR_ChatEndpoint").update(base_url=chat.url, key_variable="REALISR_UNSET_KEY")
    assert saved(server, graph).shape == (96, 128, 3)
    assert len(chat.requests) == 1 + 3 * 2


def test_the_whole_method_in_one_node(server: ComfyServer, files):
    graph = workflow("dreamsr_restore", server, (36, 24))
    node = inputs_of(graph, "RealISR_DreamSRRestore")
    assert (node["resize.width"], node["texture_start"], node["texture_steps"]) == (3840, 0.8, 16)
    node.update({"resize.width": 144, "tile_size": 64, "overlap": 32, "texture_steps": 2})
    image = saved(server, graph)
    assert image.shape == (96, 144, 3)
    node["lora_name"] = "none"
    assert np.abs(saved(server, graph) - image).max() > 0


def test_prompts_edited_by_hand(server: ComfyServer, files):
    """The shipped text fits the shipped grid's 3 x 3 tiles; here they are smaller. FLUX reads what was typed."""
    graph = workflow("patch_prompts_edited", server, (36, 36))
    smaller(graph, 144, 64, 16)
    inputs_of(graph, "RealISR_DreamSRRestore")["texture_steps"] = 2
    result = server.client.run(graph)
    (shown,) = result.outputs[node_of(graph, "RealISR_EditPatchPrompts")]["tile_editor"]
    assert len(shown["captions"]["tiles"]) == 9
    assert all(shown["captions"]["tiles"])
    image = saved(server, graph)
    assert image.shape == (144, 144, 3)
    edited = inputs_of(graph, "RealISR_EditPatchPrompts")
    edited["text"] = edited["text"].replace("legs", "boots")
    assert np.abs(saved(server, graph) - image).max() > 0


def test_the_shipped_text_is_for_the_shipped_grid():
    from realisr.models.tiles.layout import TileLayout

    graph = json.loads((API / "patch_prompts_edited.json").read_text(encoding="utf-8"))
    grid, restore = inputs_of(graph, "RealISR_TileGrid"), inputs_of(graph, "RealISR_DreamSRRestore")
    width = inputs_of(graph, "RealISR_UpscaleForRestoration")["resize.width"]
    assert restore["resize.width"] == width
    # ComfyUI's example picture is square.
    tiles = len(TileLayout.fitted(width, width, grid["tile_size"], grid["overlap"], grid["align"]))
    assert inputs_of(graph, "RealISR_EditPatchPrompts")["text"].count("=== tile ") == tiles


def test_a_new_mm_controlnet(server: ComfyServer, files):
    """Of as many layers as the small FLUX has; the file is one that the loader takes."""
    graph = json.loads((API / "mm_controlnet_new.json").read_text(encoding="utf-8"))
    made = inputs_of(graph, "RealISR_InitialiseMMControlNet")
    assert made["layers"] == 9
    made["layers"] = SIZES["double_blocks"]
    (path,) = server.client.run(graph).outputs[node_of(graph, "RealISR_SaveMMControlNet")]["text"]
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()[METADATA_KEY]) == {"text_residual": True, "dit_blocks": [0, 1]}
        assert "transformer_blocks.1.attn.to_q.weight" in file.keys()


def test_tiles_captioned_on_this_machine(server: ComfyServer, files):
    graph = workflow("vicr_tile_captions", server, (32, 32))
    images, tiles = inputs_of(graph, "RealISR_DiptychTileImages"), inputs_of(graph, "RealISR_DiptychTiles")
    assert (images["tile_size"], images["tile_overlap"]) == (tiles["tile_size"], tiles["tile_overlap"])
    for node in (images, tiles):
        node.update(tile_size=64, tile_overlap=32)
    inputs_of(graph, "RealISR_DiptychBuilder")["resize.scale"] = 3
    inputs_of(graph, "RealISR_FLUXFillSigmas")["steps"] = 2
    result = server.client.run(graph)
    assert len(result.outputs[node_of(graph, "PreviewAny")]["text"]) == 2 * 2
    assert saved(server, graph).shape == (96, 96, 3)


def test_the_notes_name_the_files_of_the_loaders():
    for name in WORKFLOWS:
        drawn = json.loads(template(name).path.read_text(encoding="utf-8"))
        notes = " ".join(node["widgets_values"][0] for node in drawn["nodes"] if node["type"] == "MarkdownNote")
        loaders = [node for node in drawn["nodes"] if "Load" in node["type"] and node["type"] != "LoadImage"]
        chosen = [
            value
            for node in loaders
            for value in node["widgets_values"]
            if str(value).endswith((".safetensors", ".pth"))
        ]
        chosen += [inputs["lora_name"] for inputs in lora_inputs(name)]
        assert chosen
        assert [value for value in chosen if value not in notes] == []


def lora_inputs(name: str) -> list[dict[str, Any]]:
    graph = json.loads((API / f"{name}.json").read_text(encoding="utf-8"))
    return [node["inputs"] for node in graph.values() if node["inputs"].get("lora_name", "none") != "none"]
