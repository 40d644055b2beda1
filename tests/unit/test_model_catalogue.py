"""The catalogue of model files against the published tensors, the README and the shipped workflows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from _pack import ROOT
from realisr.services.model_catalogue import LOADERS, METHODS, Part, known, size_text

FORMATS = ROOT / "tests" / "formats"
PARTS = {part for method in METHODS.values() for part in method.parts}

PUBLISHED = {
    "VOSR_0.5B_os": ("vosr_0.5B_os", 4),
    "VOSR_0.5B_ms": ("vosr_0.5B", 4),
    "VOSR_1.4B_os": ("vosr_1.4B_os", 4),
    "VOSR_1.4B_ms": ("vosr_1.4B", 4),
    "VOSR2": ("vosr_1.4B", 4),
    "stable-diffusion-2-1-base/vae/diffusion_pytorch_model.safetensors": ("sd21_vae", 4),
    "sd21_lwdecoder.pth": ("vosr_lwdecoder_128", 4),
    "Qwen-Image-vae-2d/diffusion_pytorch_model.safetensors": ("qwen_image_vae_2d", 4),
    "dinov2_vitb14_pretrain.pth": ("dinov2_vitb14", 4),
    "dinov2_vitl14_pretrain.pth": ("dinov2_vitl14", 4),
    "vq_ds8_c2i.pt": ("vq_ds8_c2i", 4),
    "PURE": ("pure_chameleon", 2),
}
"""Part -> list of its tensors, and bytes of a value."""


def part_named(name: str) -> Part:
    (part,) = (part for part in PARTS if part.name == name)
    return part


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_the_published_tensors(name: str):
    file, width = PUBLISHED[name]
    shapes = json.loads((FORMATS / f"{file}.keys.json").read_text(encoding="utf-8"))
    tensors = sum(math.prod(shape) * width for shape in shapes.values())
    assert part_named(name).size == pytest.approx(tensors, rel=0.01)


def test_every_part_says_where_it_goes_and_where_it_comes_from():
    for part in PARTS:
        assert part.folder
        assert part.page.startswith("https://") or "not released" in part.note, part.name
        assert part.licence or not part.page
        assert not part.link or part.link.startswith(f"{part.page}/"), part.name


def test_sizes_are_read_at_a_glance():
    assert [size_text(size) for size in (0, 300, 52_035_084, 1_948_337_520)] == [
        "",
        "about 1 MB",
        "about 52 MB",
        "about 1.9 GB",
    ]


def test_the_readme_names_the_same_files_in_the_same_folders():
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Files\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    for part in PARTS:
        if not part.page:
            continue
        told = part.name.rpartition("/")[0] if part.name.endswith("diffusion_pytorch_model.safetensors") else part.name
        named = [row for row in rows if told.split("/")[0] in row or f"nonwhy/{part.name}" in row]
        named += [row for row in rows if part.name == "clip_vision_l.safetensors" and "CLIP ViT-L/14" in row]
        assert any(f"`{part.folder}`" in row for row in named), part.name
    for page in {part.page for part in PARTS if part.name.startswith(("VOSR", "PURE", "vq_"))}:
        assert page in table


def shipped_nodes() -> Iterator[dict[str, Any]]:
    for path in sorted((ROOT / "workflows").glob("*.json")):
        graph = json.loads(path.read_text(encoding="utf-8"))
        for part in (graph, *graph.get("definitions", {}).get("subgraphs", ())):
            yield from part["nodes"]


def test_what_workflows_say_of_a_model_is_what_the_catalogue_says():
    told = [model for node in shipped_nodes() for model in node.get("properties", {}).get("models", ())]
    assert told
    for model in told:
        part = known(model["directory"], model["name"])
        if part is not None and part.link:
            assert model["url"] == part.link


FOLDERS = {"RealISR_LoadVOSRModel": "diffusion_models", "RealISR_LoadVOSRVAE": "vae"}


@pytest.mark.parametrize("loader", FOLDERS)
def test_what_workflows_choose_is_known(loader: str):
    """So that the messages and the checklist of a shipped workflow name the file to fetch."""
    chosen = {node["widgets_values"][0] for node in shipped_nodes() if node["type"] == loader}
    released = {name for name in chosen if not re.search(r"bundled|no file", name)}
    assert released
    assert all(known(FOLDERS[loader], name) for name in released)


def test_a_name_is_recognised_wherever_the_file_lies():
    assert known("diffusion_models", "VOSR_0.5B_os") == part_named("VOSR_0.5B_os")
    assert known("diffusion_models", "VOSR_0.5B_os/checkpoints/ema_model.safetensors") == part_named("VOSR_0.5B_os")
    assert known("clip_vision", "dino/dinov2_vitb14_pretrain.pth") == part_named("dinov2_vitb14_pretrain.pth")
    assert known("vae", "dinov2_vitb14_pretrain.pth") is None
    assert known("vae", "other/diffusion_pytorch_model.safetensors") is None


def test_every_loader_has_methods():
    assert {key for keys in LOADERS.values() for key in keys} == set(METHODS)
