"""VICR as a method of the engine: settings, prepared batches, what is kept on the disk, sample grids, a dry run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from _pack import ROOT
from harness.training import TrainingServer, assert_two_processes_equal_one
from harness.vicr_training import (
    EMBEDDING,
    PANEL,
    POOLED,
    TEXT,
    make_method,
    save_models,
    save_photos,
    vicr_settings,
)

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(scope="module")
def models(comfyui, tmp_path_factory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("vicr_models"), comfyui.comfyui)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return save_photos(tmp_path_factory.mktemp("vicr_photos"))


@pytest.fixture
def settings(models, photos, tmp_path):
    """Makes settings with changes; `data` and `models` are added to."""

    def make(**changes: Any) -> dict[str, Any]:
        made = vicr_settings(tmp_path / "run", models, photos)
        for part in ("data", "models"):
            made[part] = made[part] | changes.pop(part, {})
        return made | changes

    return make


def built(settings: dict[str, Any], device: torch.device = CPU) -> Any:
    method = make_method(settings)
    method.build(device)
    return method


def prepared(method: Any, number: int = 0) -> dict[str, Any]:
    from realisr.training.engine.draws import Draws

    samples, size = method.samples(), method.config.batch
    batch = method.collate([samples[number * size + index] for index in range(size)])
    with torch.no_grad():
        return method.prepare(batch, Draws(method.config.seed, number))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["vicr", "vicr_tags"])
def test_shipped_settings(name):
    """The papers' numbers, and every key known."""
    from realisr.training.engine.config import read_config
    from realisr.training.vicr.config import VICRConfig

    config = read_config(ROOT / "training" / "configs" / f"{name}.yaml", [], VICRConfig)
    assert config.steps == 15_000 and config.batch * config.accumulate == 16
    assert config.rank == 32 and config.data.crop == 512
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("prodigy", 1, 0.01)
    assert optimizer.bias_correction and optimizer.safeguard_warmup
    assert config.data.prompts == (".tags.txt" if name == "vicr_tags" else ".txt")
    assert [kind.kind for kind in config.data.degradation] == ["real_world"]


WRONG_SETTINGS = {
    "panel": ({"data": {"crop": 40}}, "data.crop is 40; a panel's side must be a multiple of 16"),
    "no vision": ({"models": {"clip_vision": None}}, "models.clip_vision is needed for the bridge"),
    "no bridge": ({"bridge": {"joins": "nothing", "hidden": 8}}, "leave out bridge.file and bridge.hidden"),
    "versions": ({"fixed_degradations": 2}, "fixed_degradations needs data.fixed_crops"),
}


@pytest.mark.parametrize("kind", WRONG_SETTINGS)
def test_settings_that_exclude_each_other(settings, kind):
    changes, said = WRONG_SETTINGS[kind]
    with pytest.raises(ValueError, match=said):
        make_method(settings(**changes))


def test_files_that_do_not_fit(settings, models, tmp_path):
    from safetensors.torch import save_file

    from harness.vicr_training import tiny_flux_fill

    save_file(tiny_flux_fill(context_width=40), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"models\.t5 is 64 wide; this FLUX reads 40"):
        built(settings(models={"flux": str(tmp_path / "other.safetensors")}), META)
    with pytest.raises(ValueError, match=r"models\.vae is needed: .* is no diffusers folder with a vae in it"):
        built(settings(models={"vae": None}), META)
    with pytest.raises(FileNotFoundError, match=r"there is no .*lost\.safetensors"):
        built(settings(models={"t5": str(tmp_path / "lost.safetensors")}), META)
    augmented = {"fixed_crops": 2, "augment": {"flip": True}}
    with pytest.raises(ValueError, match="crops do not come again"):
        built(settings(data=augmented, fixed_degradations=1), META)


def test_a_prepared_batch(settings):
    """Latents of the pair beside those of the masked pair, by the autoencoder itself; levels and noise of the draws."""
    from realisr.training.engine.draws import Draws

    method = built(settings())
    samples = method.samples()
    batch = method.collate([samples[0], samples[1]])
    pictures = method.pictures(batch, Draws(0, 0))
    made = prepared(method)
    vae = method.diptychs.autoencoder.network
    lq, hq = pictures["lq"] * 2 - 1, pictures["hq"] * 2 - 1
    with torch.no_grad():
        pair = vae.encode(torch.cat([lq, hq], dim=-1)).latent_dist.mean
        masked = vae.encode(torch.cat([lq, torch.zeros_like(hq)], dim=-1)).latent_dist.mean
    torch.testing.assert_close(made["clean"], (pair - 0.1159) * 0.3611, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made["masked"], (masked - 0.1159) * 0.3611, rtol=1e-4, atol=1e-5)
    assert made["noise"].shape == made["clean"].shape == (2, 16, PANEL // 8, PANEL // 4)
    assert made["text"].shape == (2, 12, TEXT) and made["pooled"].shape == (2, POOLED)
    assert made["embeds"].shape == (2, EMBEDDING) and ((made["time"] > 0) & (made["time"] < 1)).all()
    assert equal(made, prepared(method)) and not torch.equal(prepared(method, 1)["time"], made["time"])


def test_prompts_are_encoded_once(settings):
    """A second run of the same folder reads no text encoder; other lengths are other entries."""
    first = prepared(built(settings()))
    again = built(settings())
    assert equal(prepared(again), first) and not again.prompts.encoders.networks
    longer = built(settings(prompt_tokens=14))
    assert prepared(longer)["text"].shape[1] == 14 and longer.prompts.encoders.networks


def test_crops_that_come_again_are_encoded_once(settings, monkeypatch):
    """With fixed crops and degradations the second pass over the photos computes nothing, and gives the same."""
    fixed = settings(data={"fixed_crops": 1}, fixed_degradations=1)
    method = built(fixed)
    first = [prepared(method, number) for number in range(3)]
    monkeypatch.setattr(type(method.diptychs.autoencoder), "encode", lambda *_: pytest.fail("encoded again"))
    again = built(fixed)
    assert all(equal(prepared(again, number), made) for number, made in enumerate(first))


def test_kept_features_are_those_of_the_pictures(settings):
    from realisr.training.engine.draws import Draws

    method = built(settings(data={"fixed_crops": 2}, fixed_degradations=3))
    samples = method.samples()
    batch = method.collate([samples[0], samples[1]])
    pictures = method.pictures(batch, Draws(0, 0))
    made, direct = prepared(method), method.diptychs(**pictures)
    for name, value in direct.items():
        torch.testing.assert_close(made[name], value, rtol=1e-4, atol=1e-5)
    versions = {tuple(method.fixed.versions({"number": [n]})) for n in range(40)}
    assert len(versions) == 3


def test_times(settings):
    """The paper names none: uniform ones shifted as the sampler's, or logit-normal ones."""
    from realisr.training.engine.draws import Draws

    shape = torch.Size((4000, 16, 64, 128))

    def times(**time: Any) -> Tensor:
        method = make_method(settings(time=time))
        return method.times(shape, Draws(0, 0))

    plain, shifted = times(shift=False), times()
    assert abs(plain.mean() - 0.5) < 0.02
    factor = math.exp(0.5 + 0.65 * (2048 - 256) / 3840)
    expected = factor / (factor + 1 / plain.double().clamp(min=1e-9) - 1)
    torch.testing.assert_close(shifted, expected.float(), rtol=1e-5, atol=1e-6)
    logits = torch.logit(times(logit_normal=[0.5, 2.0], shift=False))
    assert abs(logits.mean() - 0.5) < 0.1 and abs(logits.std() - 2) < 0.1


def test_restoring(settings, photos):
    from realisr.training.engine.draws import Draws

    method = built(settings(validation={"images": [str(photos)], "count": 3}))
    batch = method.validation()
    with torch.no_grad():
        restored = method.restore(batch, Draws(0, 7))
    assert restored.shape == batch["hq"].shape == (3, 3, PANEL, PANEL)
    assert restored.min() >= 0 and restored.max() <= 1 and restored.std() > 0.01


def test_without_a_bridge(settings):
    method = built(settings(bridge={"joins": "nothing"}, models={"clip_vision": None}))
    made = prepared(method)
    assert "embeds" not in made and method.network.bridge is None
    method.network("train", made, None)["loss"].backward()
    assert "embeds" not in method.example_batch()


@pytest.mark.parametrize("bridge", ["modulation", "nothing"])
def test_dry_run(settings, bridge):
    """From headers: the example batch runs through the network on fake tensors, and the first pictures are written."""
    from realisr.training.engine.dry_run import describe, write_first_batch

    method = make_method(settings(bridge={"joins": bridge}))
    lines = describe(method)
    assert any("trained parameters" in line for line in lines)
    assert all(value.device.type == "meta" for value in method.network.parameters())
    (picture,) = write_first_batch(method)
    assert picture.is_file()


@pytest.mark.parametrize(("base", "least", "most"), [("int8", 0.5, 0.6), ("nf4", 0.28, 0.38)])
def test_dry_run_of_a_quantised_base(settings, base, least, most):
    """Its weights are those of half and a good quarter of bf16's bytes, and as much is trained."""
    from realisr.training.engine.estimate import estimate

    def size(base: str) -> tuple[int, int]:
        method = built(settings(base=base, precision="bf16"), META)
        frozen = [value for value in method.network.parameters() if not value.requires_grad]
        found = estimate(method)
        assert found.activations > 0
        return found.trained, sum(value.numel() * value.element_size() for value in frozen)

    (trained, whole), (trained_of_base, of_base) = size("full"), size(base)
    assert trained == trained_of_base and least < of_base / whole < most


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_a_quantised_base_trains(settings, base):
    """It computes about what the whole one does, and its LoRA learns."""
    pytest.importorskip("bitsandbytes")
    whole, method = (built(settings(base=kind, precision="bf16")) for kind in ("full", base))
    made = prepared(whole)
    losses = []
    for network in (whole.network, method.network):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(network("train", made, None)["loss"])
    assert abs(losses[1] / losses[0] - 1) < 0.05
    losses[1].backward()
    assert method.network.transformer.transformer_blocks[0].attn.to_q.lora_B.default.weight.grad.abs().max() > 0


def test_a_quantised_base_without_bitsandbytes(settings, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModuleNotFoundError, match="base is nf4, which needs bitsandbytes: pip install bitsandbytes"):
        built(settings(base="nf4"))


def test_example_batch_is_like_a_prepared_one(settings):
    method = built(settings())
    example, made = method.example_batch(), prepared(method)
    assert {name: value.shape for name, value in example.items()} == {name: v.shape for name, v in made.items()}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [{"name": "adamw", "learning_rate": 1e-3, "eps": 1e-4}, {"name": "prodigy"}])
def test_two_processes_equal_one_with_twice_the_accumulation(settings, tmp_path, optimizer):
    run = settings(steps=5, batch=1, log={"every": 1, "trackers": []}, optimizer=optimizer)
    with TrainingServer(tmp_path, "vicr") as server:
        assert_two_processes_equal_one(server, tmp_path, run)
