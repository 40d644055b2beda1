"""The estimate before a run: the same numbers as the run itself has, from files that are only looked at."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from _pack import ROOT
from demo import node_of
from harness.released import save_released_files

VOSR, SAMPLER = "RealISR_RestorationCFGSampler", "5"


@dataclass
class Asked:
    """What was asked of the host when models were loaded: (their bytes, memory_required)."""

    loads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def stages(self) -> set[tuple[int, int]]:
        return set(self.loads)


@pytest.fixture
def asked(host, monkeypatch) -> Asked:
    import comfy.model_management

    seen, load = Asked(), comfy.model_management.load_models_gpu

    def noted(models, memory_required=0, **kwargs):
        unique = {id(model.model): model for model in models}.values()
        seen.loads.append((int(sum(model.model_size() for model in unique)), int(memory_required)))
        return load(models, memory_required=memory_required, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", noted)
    return seen


def answer(graph: dict[str, Any], node: str, last_size: Any = None) -> dict[str, Any]:
    from realisr.nodes.estimates import answer

    return answer(graph, node, last_size)


def nano(**changes: Any) -> dict[str, Any]:
    """VOSR nano on the example photo, 768 x 512."""
    graph = json.loads((ROOT / "workflows" / "api" / "vosr_nano_restore.json").read_text(encoding="utf-8"))
    graph["2"] = {"class_type": "RealISR_ExamplePhoto", "inputs": {"photo": "moose"}}
    graph[SAMPLER]["inputs"] |= changes
    return graph


def test_a_picture_followed_to_its_result(host):
    shown = answer(nano(**{"resize.scale": 4}), SAMPLER)
    assert (shown["from"], shown["to"], shown["level"]) == ([768, 512], [3072, 2048], "fine")
    assert shown["tiles"] == shown["forwards"] > 1000
    assert 0 < shown["memory"] < shown["free"]
    assert set(shown["unused"]) >= {"preset", "restoration_scale"}
    assert json.loads(json.dumps(shown)) == shown


def stages(shown: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: (weights, work) for name, weights, work in shown["stages"]}


TWICE = ("PrimitiveInt", {"value": 2})
UPSCALE, BY_THREE = "RealISR_UpscaleForRestoration", {"resize": "scale factor", "resize.scale": 3.0}


def empty(width: int, height: int) -> dict[str, Any]:
    return {"class_type": "EmptyImage", "inputs": {"width": width, "height": height, "batch_size": 1, "color": 0}}


def test_vosr_asks_the_host_for_what_was_estimated(host, asked):
    import nodes

    from realisr.host.vosr.loader import load_vosr_model
    from realisr.host.vosr.vae import load_vosr_vae
    from realisr.host.vosr.vision import load_vision_encoder
    from realisr.nodes.vosr import RestorationCFGSampler

    save_released_files(host.models)
    graph = json.loads((ROOT / "workflows" / "api" / "vosr_tiled_4k.json").read_text(encoding="utf-8"))
    number = node_of(graph, VOSR)
    inputs = graph[number]["inputs"]
    graph["e"], inputs["image"] = empty(136, 130), ["e", 0]
    inputs |= {"resize": "scale factor", "resize.scale": 5.0, "steps": 2}
    shown = answer(graph, number)
    assert (shown["to"], shown["level"]) == ([680, 650], "fine")
    names = {graph[inputs[name][0]]["class_type"]: graph[inputs[name][0]]["inputs"] for name in ("model", "vae")}
    model = load_vosr_model(*names["RealISR_LoadVOSRModel"].values())
    vae = load_vosr_vae(*names["RealISR_LoadVOSRVAE"].values())
    vision = load_vision_encoder(graph[inputs["vision_encoder"][0]]["inputs"]["vision_name"])
    image = host.run(nodes.EmptyImage, **graph["e"]["inputs"])[0]
    given = {name: value for name, value in inputs.items() if "." not in name and not isinstance(value, list)}
    choices = {
        name: {name: inputs[name]} | {key.split(".")[1]: inputs[key] for key in inputs if key.startswith(f"{name}.")}
        for name in ("resize", "tiling")
    }
    parts = {"model": model, "vae": vae, "vision_encoder": vision, "image": image}
    host.run(RestorationCFGSampler, **{**given, **choices, **parts})
    assert set(stages(shown)) == {"encoding", "decoding", "sampling", "vision features"}
    assert set(stages(shown).values()) <= asked.stages
    assert shown["needs"] == ["DINOv2 ViT-L/14"] or shown["needs"] == ["DINOv2 ViT-B/14"]


def test_dreamsr_asks_the_host_for_what_was_estimated(host, asked):
    import nodes

    from harness import checkpoints
    from harness.dreamsr import control_weights, save_control
    from realisr.nodes.dreamsr import DreamSRRestore
    from realisr.nodes.dreamsr_control import LoadMMControlNet

    weights = checkpoints.flux(7, double_blocks=2, single_blocks=1, context_width=32, pooled_width=768)
    loaders = {
        "m": ("UNETLoader", {"unet_name": host.save_model("diffusion_models", "estimate_flux.safetensors", weights)}),
        "v": ("VAELoader", {"vae_name": host.save_model("vae", "estimate_vae.safetensors", checkpoints.taesd())}),
        "c": (
            "RealISR_LoadMMControlNet",
            {"control_name": save_control(host, "estimate.safetensors", control_weights())},
        ),
    }
    loaders["m"][1]["weight_dtype"] = loaders["c"][1]["weight_dtype"] = "default"
    graph = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in loaders.items()}
    graph["e"] = empty(72, 48)
    widgets = {
        "lora_name": "none", "resize": "scale factor", "resize.scale": 2.0, "tile_size": 64, "overlap": 32,
        "weights": "uniform", "texture_start": 0.8, "texture_steps": 2, "seed": 5, "color_alignment": "none",
        "control_strength": 1.0, "lora_strength": 1.0, "tiles_per_batch": 2, "vae_tile_size": 0,
    }  # fmt: skip
    links = {"model": ["m", 0], "vae": ["v", 0], "image": ["e", 0], "mm_controlnet": ["c", 0]}
    graph["d"] = {"class_type": "RealISR_DreamSRRestore", "inputs": widgets | links}
    shown = answer(graph, "d")
    assert (shown["to"], shown["tiles"], shown["forwards"]) == ([144, 96], 8, 16)
    assert shown["unused"] == ["lora_strength"]
    tokens, pooled = torch.randn(1, 5, 32), torch.randn(1, 768)
    parts = {
        "model": host.run(nodes.UNETLoader, **loaders["m"][1])[0],
        "vae": host.run(nodes.VAELoader, **loaders["v"][1])[0],
        "mm_controlnet": host.run(LoadMMControlNet, **loaders["c"][1])[0],
        "image": host.run(nodes.EmptyImage, **graph["e"]["inputs"])[0],
        "positive": [[tokens, {"pooled_output": pooled, "guidance": 3.5}]],
    }
    given = {name: [value] for name, value in (widgets | parts).items() if not name.startswith("resize")}
    host.run(DreamSRRestore, resize={"resize": ["scale factor"], "scale": [2.0]}, **given)
    assert set(stages(shown).values()) <= asked.stages


def test_pure_asks_the_host_for_what_was_estimated(host, asked):
    from harness import pure
    from realisr.nodes.pure_loaders import LoadARRestorer

    pure.save_released_files(host.models)
    loader = {"model_name": "PURE", "vq_name": "auto (vq_ds8_c2i)", "weight_dtype": "auto"}
    widgets: dict[str, Any] = {}
    for name, value in pure.DEFAULTS.items():
        chosen = value if isinstance(value, dict) else {name: value}
        widgets |= {key if key == name else f"{name}.{key}": each for key, each in chosen.items()}
    graph = {
        "m": {"class_type": "RealISR_LoadARRestorer", "inputs": loader},
        "e": empty(70, 64),
        "p": {"class_type": "RealISR_ARTokenRestorer", "inputs": widgets | {"model": ["m", 0], "image": ["e", 0]}},
    }
    shown = answer(graph, "p")
    assert (shown["to"], shown["tiles"], shown["forwards"]) == ([70, 64], 2, 64)
    model = host.run(LoadARRestorer, **loader)[0]
    pure.run_restorer(model, torch.zeros(1, 64, 70, 3))
    assert set(stages(shown).values()) <= asked.stages


def whole(**changes: Any):
    from realisr.host.estimate import RunEstimate, Stage

    fields = {"tiles": 1, "forwards": 25, "stages": [Stage("sampling", 10**9, 10**9, 10**8)]} | changes
    return RunEstimate("Node", 1024, 1024, **fields)


def test_what_is_said_of_a_run(host, monkeypatch, caplog):
    import comfy.model_management

    from realisr.host.estimate import MOST_FORWARDS, Stage, judge, require_possible

    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: 3 * 10**9)
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_, **__: 8 * 10**9)
    assert judge(whole()).level == "fine"
    tight = whole(stages=[Stage("sampling", 10**9, 5 * 10**9, 2 * 10**9)])
    assert (judge(tight).level, judge(whole(forwards=200_000)).level) == ("tight", "tight")
    assert "It needs about 6.0 GB, and 3.0 GB can be had" in judge(tight).reason
    require_possible(whole())
    assert not caplog.records
    require_possible(tight)
    assert "Node, 1024x1024: It needs about 6.0 GB" in caplog.text
    with pytest.raises(ValueError, match=r"Node, 1024x1024 pixels: One forward needs about 17 GB, and this device has"):
        require_possible(whole(stages=[Stage("sampling", 0, 40 * 10**9, 17 * 10**9)]))
    with pytest.raises(ValueError, match=r"9 tiles come to 1,000,001 forwards for one image"):
        require_possible(whole(tiles=9, forwards=MOST_FORWARDS + 1))


def test_files_are_looked_at_and_not_read(host, tmp_path):
    from safetensors.torch import save_file

    from realisr.host.described import described, described_tensors

    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(3, 5, dtype=torch.bfloat16), "args": torch.tensor([1, 2], dtype=torch.uint8)}, file)
    tensors, _ = described_tensors(file)
    assert (tensors["weight"].is_meta, tensors["weight"].shape, tensors["weight"].dtype) == (
        True,
        (3, 5),
        torch.bfloat16,
    )
    assert tensors["args"].tolist() == [1, 2], "settings stored as text are read"
    pickled = tmp_path / "model.pth"
    torch.save({"weight": torch.ones(2, 2)}, pickled)
    assert described_tensors(pickled)[0]["weight"].is_meta
    for broken in (b"", b"{}", b"\x80\x04junk"):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            described_tensors(file)
    seen = [described(lambda: described_tensors(pickled), "test", files=(pickled,)) for _ in range(2)]
    assert seen[0] is seen[1]
    torch.save({"weight": torch.ones(4, 4)}, pickled)
    assert described(lambda: described_tensors(pickled), "test", files=(pickled,))[0]["weight"].shape == (4, 4)


@pytest.mark.parametrize(
    ("nodes", "size"),
    [
        ({"a": ("ImageScale", {"width": 50, "height": 0, "image": ["e", 0]})}, (50, 25)),
        ({"a": ("ImageScale", {"width": 0, "height": 0, "image": ["e", 0]})}, (40, 20)),
        ({"a": ("ImageScaleBy", {"scale_by": 1.5, "image": ["e", 0]})}, (60, 30)),
        ({"a": ("ImageScaleBy", {"scale_by": ["f", 0], "image": ["e", 0]}), "f": TWICE}, (80, 40)),
        ({"a": ("ImageScaleToTotalPixels", {"megapixels": 0.5, "image": ["e", 0]})}, (1024, 512)),
        ({"a": ("ImageCrop", {"width": 30, "height": 30, "x": 20, "y": 0, "image": ["e", 0]})}, (20, 20)),
        ({"a": ("RealISR_DegradeImage", {"scale": 4, "output_size": "low resolution", "image": ["e", 0]})}, (10, 5)),
        ({"a": (UPSCALE, {**BY_THREE, "image": ["e", 0]})}, (120, 60)),
        ({"a": ("JoinImageWithAlpha", {"image": ["b", 0]}), "b": ("RepeatImageBatch", {"image": ["e", 0]})}, (40, 20)),
        ({"a": ("SomethingElse", {"image": ["e", 0]})}, None),
        ({"a": ("RealISR_AlignColors", {"image": ["a", 0]})}, None),
    ],
)  # fmt: skip
def test_sizes_followed_through_a_graph(host, nodes, size):
    from realisr.nodes.graph import Node, Unknown, picture_size

    graph = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}
    graph["e"] = empty(40, 20)
    if size is None:
        with pytest.raises(Unknown):
            picture_size(Node.of(graph, "a"))
    else:
        assert picture_size(Node.of(graph, "a")) == size


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_loaded_photo_lies_as_its_orientation_says(host, orientation):
    import nodes
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(host.base / "input" / "turned.jpg", exif=exif)
    from realisr.nodes.graph import Node, picture_size

    image = host.run(nodes.LoadImage, image="turned.jpg")[0]
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "turned.jpg"}}}
    assert picture_size(Node.of(graph, "1")) == (image.shape[2], image.shape[1])
