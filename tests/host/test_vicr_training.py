"""VICR from training to the graph: a tiny FLUX Fill trained by the engine, its files through the nodes' loaders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from harness.vicr import LORA_MODULES, Scene, bridged, load_fill, model_space, velocity
from harness.vicr_training import (
    EMBEDDING,
    HIDDEN,
    POOLED,
    TEXT,
    make_method,
    save_models,
    save_photos,
    tiny_flux_fill,
    vicr_settings,
)
from harness.vosr import relative_error

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def models(host, comfyui, tmp_path_factory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("vicr_models"), comfyui.comfyui)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return save_photos(tmp_path_factory.mktemp("vicr_photos"))


def train(settings: dict[str, Any]) -> Any:
    """The method after a whole run of the engine."""
    from realisr.training.engine.engine import Engine

    engine = Engine(make_method(settings))
    engine.run()
    return engine.method


def install(host: Any, out: Path, name: str) -> None:
    """What a user does: both files into ComfyUI's folders, whose names they lie under."""
    for folder, file in (("loras", f"{name}.safetensors"), ("model_patches", f"{name}_bridge.safetensors")):
        target = host.models / folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(out / folder / file, target)


def scene_of(batch: int = 2) -> tuple[Scene, Tensor, Tensor]:
    scene = Scene.random((4, 8), batch, TEXT, guidance=30.0)
    generator = torch.Generator().manual_seed(4)
    pooled = torch.randn(1, POOLED, generator=generator)
    embeds = torch.randn(1, EMBEDDING, generator=generator)
    return Scene(scene.text, pooled, scene.masked, scene.noise, 30.0), embeds, model_space(scene.noise)


def by_trainer(method: Any, scene: Scene, embeds: Tensor | None, x: Tensor, time: float) -> Tensor:
    from realisr.training.vicr.network import VELOCITY

    batch = {
        "x": x,
        "time": torch.full((len(x),), time),
        "masked": model_space(scene.masked),
        "text": scene.text.expand(len(x), -1, -1),
        "pooled": scene.pooled.expand(len(x), -1),
        "embeds": None if embeds is None else embeds.expand(len(x), -1),
    }
    with torch.no_grad():
        return method.network.eval()(VELOCITY, batch, None)["velocity"]


@pytest.mark.parametrize("joins", ["modulation", "pooled"])
def test_round_trip(host, models, photos, tmp_path, joins):
    """20 steps, both files through the nodes, and the graph predicts what the trainer's network does."""
    import nodes

    from realisr.nodes.vicr_loaders import LoadVisionContextBridge

    name = f"trained_{joins}"
    settings = vicr_settings(tmp_path, models, photos, bridge={"joins": joins}, export={"dtype": "fp32", "name": name})
    method = train(settings)
    install(host, tmp_path, name)
    plain = load_fill(host, "vicr_training_base", tiny_flux_fill())
    (model,) = host.run(nodes.LoraLoaderModelOnly, model=plain, lora_name=f"{name}.safetensors", strength_model=1.0)
    (bridge,) = host.run(LoadVisionContextBridge, bridge_name=f"{name}_bridge.safetensors")
    scene, embeds, x = scene_of()
    for time in (0.2, 0.9):
        expected = by_trainer(method, scene, embeds, x, time)
        with_bridge, wire = bridged(model, scene.wire, bridge, embeds)
        result = velocity(with_bridge, scene, x, torch.tensor([time]), wire)
        assert relative_error(result, expected) < TOLERANCE
        without = velocity(model, scene, x, torch.tensor([time]))
        untrained = velocity(plain, scene, x, torch.tensor([time]))
        assert relative_error(without, expected) > 1e-3, "the bridge shows"
        assert relative_error(untrained, without) > 1e-2, "the LoRA shows"


def test_keys_and_metadata(host, models, photos, tmp_path):
    """Those the loaders document; bf16 by default."""
    settings = vicr_settings(tmp_path, models, photos, steps=1, export={"name": "keys"}, rank=3)
    train(settings)
    with safe_open(tmp_path / "loras" / "keys.safetensors", "pt") as file:
        names = list(file.keys())
        stated = json.loads(file.metadata()["realisr_vicr"])
        assert all(file.get_tensor(name).dtype == torch.bfloat16 for name in names)
        downs = [name for name in names if name.endswith(".lora_A.weight")]
        assert {file.get_slice(name).get_shape()[0] for name in downs} == {3}
    assert len(names) == 2 * len(downs)
    assert all(re.fullmatch(LORA_MODULES, name.removesuffix(".lora_A.weight")) for name in downs)
    assert all(name.startswith("transformer.") for name in names)
    assert stated == {"bridge": "modulation", "guidance": 30.0, "panel": 32, "prompts": ".txt", "rank": 3, "steps": 1}
    with safe_open(tmp_path / "model_patches" / "keys_bridge.safetensors", "pt") as file:
        assert set(file.keys()) == {
            "norm.weight",
            "norm.bias",
            "proj_in.weight",
            "proj_in.bias",
            "proj_out.weight",
            "proj_out.bias",
            "scale",
        }


def test_tokens_are_comfyuis(host, comfyui):
    """Those that CLIPTextEncode reads, padding included."""
    from comfy.text_encoders.flux import FluxTokenizer

    from realisr.training.flux.encoders import Tokenizers

    tokenizers = Tokenizers.read(comfyui.comfyui)
    theirs = FluxTokenizer()
    for prompt in ("a red brick wall, moss between the stones", "", "Zwei Häuser\nam Fluss", "tree, house, sky, car"):
        weighted = theirs.tokenize_with_weights(prompt)
        clip_ids, t5_ids = tokenizers.ids([prompt], 256)
        assert [pair[0] for pair in weighted["l"][0]] == clip_ids[0].tolist()
        assert [pair[0] for pair in weighted["t5xxl"][0]] == t5_ids[0].tolist()


def test_clip_pixels_are_comfyuis(host):
    from comfy.clip_model import clip_preprocess

    from realisr.training.flux.encoders import clip_pixels

    images = torch.rand(2, 3, 96, 128)
    theirs = clip_preprocess(images.movedim(1, -1), size=224, crop=False)
    torch.testing.assert_close(clip_pixels(images, 224), theirs, rtol=1e-5, atol=1e-5)


# --- New Vision-Context Bridge ---------------------------------------------------------------------------------------


def new_bridge(host: Any, model: Any, **changes: Any) -> Any:
    from realisr.nodes.vicr_loaders import NewVisionContextBridge

    inputs = {"joins": "modulation vector", "hidden_size": 0, "seed": 0, "filename_prefix": ""}
    return host.run(NewVisionContextBridge, model=model, **(inputs | changes))[0]


@pytest.fixture(scope="module")
def model(host):
    return load_fill(host, "vicr_training_base", tiny_flux_fill())


@pytest.mark.parametrize(("joins", "width"), [("modulation vector", HIDDEN), ("pooled text", POOLED)])
def test_a_new_bridge_changes_nothing(host, model, joins, width):
    bridge = new_bridge(host, model, joins=joins)
    assert bridge.model.config.width == width and bridge.model.config.hidden == HIDDEN
    scene, _, x = scene_of()
    embeds = torch.randn(1, 768)
    patched, wire = bridged(model, scene.wire, bridge, embeds)
    at = torch.tensor([0.5])
    assert torch.equal(velocity(patched, scene, x, at, wire), velocity(model, scene, x, at))
    with torch.inference_mode():
        bridge.model.proj_out.weight.fill_(0.01)
    patched, wire = bridged(model, scene.wire, bridge, embeds)
    assert not torch.equal(velocity(patched, scene, x, at, wire), velocity(model, scene, x, at))


def test_a_new_bridge_follows_its_seed(host, model):
    first, same, other = (new_bridge(host, model, seed=seed, hidden_size=24).model for seed in (1, 1, 2))
    assert torch.equal(first.proj_in.weight, same.proj_in.weight) and len(first.proj_in.weight) == 24
    assert not torch.equal(first.proj_in.weight, other.proj_in.weight)


def test_a_new_bridge_saved_loads_and_trains(host, models, photos, model, tmp_path):
    """The written file goes through the loader, and starts a training (with this CLIP's width)."""
    from realisr.nodes.vicr_loaders import LoadVisionContextBridge
    from realisr.training.vicr.export import read_bridge

    made = new_bridge(host, model, filename_prefix="model_patches/fresh", seed=5)
    (written,) = (host.base / "output" / "model_patches").glob("fresh_*.safetensors")
    target = host.models / "model_patches" / "fresh.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(written, target)
    (loaded,) = host.run(LoadVisionContextBridge, bridge_name="fresh.safetensors")
    config, tensors = read_bridge(written)
    assert loaded.model.config == made.model.config == config
    assert all(torch.equal(value, tensors[name]) for name, value in made.model.state_dict().items())
    settings = vicr_settings(tmp_path, models, photos, bridge={"file": str(written)})
    with pytest.raises(ValueError, match=rf"reads 768 and gives {HIDDEN}; .* it must read {EMBEDDING}"):
        make_method(settings).build(torch.device("meta"))


def test_a_new_bridge_for_what_is_no_flux(host, multi_step):
    with pytest.raises(ValueError, match=r"the VOSR model tiny\w+ is connected to model"):
        new_bridge(host, multi_step.load())
