"""The trainer: exact resume, exports that load strictly, both modes, data that depends on the step alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import train_vosr
from realisr.models.vosr.dit import VOSRDiT
from realisr.training.data import PairBatches
from realisr.training.degradations import SimpleRange
from realisr.training.procedural_images import make_image
from realisr.training.vosr_losses import Conditions, ConditionScheme, Distillation
from realisr.training.vosr_setup import PRESETS, make_latents, make_model
from realisr.training.vosr_start import start_from_condition
from realisr.training.vosr_trainer import TrainOptions, make_optimizers
from realisr.training.vosr_weights import load_model

MICRO = {
    **PRESETS["nano"],
    "resolution": 16,
    "dim": 160,
    "depth": 1,
    "num_heads": 5,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "micro.json"
    path.write_text(json.dumps(MICRO), encoding="utf-8")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(2):
        image = make_image(np.random.default_rng(index), 64)
        Image.fromarray((image * 255).astype(np.uint8)).save(folder / f"{index}.png")
    return folder


def train(mode: str, out: Path, photos: Path, steps: int, *extra: str) -> None:
    common = ["--images", str(photos), "--batch", "2", "--workers", "0", "--device", "cpu", "--precision", "fp32"]
    run = ["--out", str(out), "--steps", str(steps), "--lr", "1e-3", "--log-every", "1", "--validate-every", "2"]
    train_vosr.main([mode, *run, *common, *extra])


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / "ema_model.safetensors")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_and_two_steps_are_four_steps(tmp_path, config, photos, optimizer):
    extra = ("--config", str(config), "--optimizer", optimizer, "--init", "condition", "--warmup", "3")
    train("flow", tmp_path / "whole", photos, 4, *extra)
    train("flow", tmp_path / "parts", photos, 2, *extra)
    halfway = weights(tmp_path / "parts")
    train("flow", tmp_path / "parts", photos, 4, *extra, "--resume")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(not torch.equal(halfway[name], parts[name]) for name in parts)
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4]


def test_a_run_is_not_overwritten_by_accident(tmp_path, config, photos):
    train("flow", tmp_path / "run", photos, 1, "--config", str(config))
    with pytest.raises(SystemExit, match="--resume"):
        train("flow", tmp_path / "run", photos, 1, "--config", str(config))
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train("flow", tmp_path / "other", photos, 1, "--config", str(config), "--resume")


def test_export_is_one_half_precision_file_that_loads_strictly(tmp_path, config, photos):
    train("flow", tmp_path / "run", photos, 1, "--config", str(config), "--validation", str(photos))
    target = tmp_path / "model.safetensors"
    train_vosr.main(["export", str(tmp_path / "run"), str(target)])
    with safe_open(target, framework="pt") as file:
        assert json.loads(file.metadata()["vosr_args"])["dim"] == MICRO["dim"]
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}
    args, exported = load_model(target)
    _, original = load_model(tmp_path / "run")
    assert args["ae_type"] == "pixel_unshuffle" and "distill_type" not in args
    train_vosr.main(["export", str(target), str(target), "--one-step"])
    assert load_model(target)[0]["distill_type"] == "posterior_mean"
    for name, tensor in original.state_dict().items():
        assert torch.allclose(exported.state_dict()[name], tensor, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("method", ["rcgm", "shortcut"])
def test_distillation_makes_a_student_with_an_end_time(tmp_path, config, photos, method):
    train("flow", tmp_path / "teacher", photos, 1, "--config", str(config))
    out = tmp_path / "student"
    train("distill", out, photos, 2, "--teacher", str(tmp_path / "teacher"), "--method", method)
    args, student = load_model(out)
    assert student.config.has_end_time
    assert args["distill_type"] == method
    teacher = load_model(tmp_path / "teacher")[1].state_dict()
    assert any(not torch.equal(student.state_dict()[name], tensor) for name, tensor in teacher.items())


def test_checkpointing_changes_memory_not_results(tmp_path, config, photos):
    train("flow", tmp_path / "plain", photos, 2, "--config", str(config))
    train("flow", tmp_path / "checkpointed", photos, 2, "--config", str(config), "--gradient-checkpointing")
    plain, checkpointed = weights(tmp_path / "plain"), weights(tmp_path / "checkpointed")
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)


@pytest.mark.parametrize(
    ("config_name", "message"), [("huge", "--config is 'huge'"), ("0.5B", "needs a VAE and a vision encoder")]
)
def test_configurations_it_cannot_train(tmp_path, photos, config_name, message):
    with pytest.raises(SystemExit, match=message):
        train("flow", tmp_path / "run", photos, 1, "--config", config_name)


def test_conditioned_start_is_the_linear_estimator():
    options = train_vosr.parse(["flow", "--out", "x", "--steps", "1"])
    _, latents, model, _ = train_vosr.starting_point(options)
    lq, x = torch.randn(2, 2, latents.latent_channels, 32, 32)
    start_from_condition(model, lq, torch.Generator().manual_seed(0))
    with torch.no_grad():
        at_noise = model(torch.cat([lq, x], dim=1), torch.ones(2))
        halfway = model(torch.cat([lq, x], dim=1), torch.full((2,), 0.5))
    assert (at_noise - (x - lq)).square().mean().sqrt() < 0.03
    a = (0.5 - 0.5 * 0.03) / (0.25 + 0.25 * 0.03)
    assert (halfway - (a * x - (1 + 0.5 * a) * lq)).square().mean().sqrt() < 0.15


def test_one_step_start_copies_the_condition_at_any_time():
    """One step from any noise gives the LQ latent, in half precision too: no large terms that cancel."""
    options = train_vosr.parse(["flow", "--out", "x", "--steps", "1"])
    _, latents, model, _ = train_vosr.starting_point(options)
    lq, x = torch.randn(2, 2, latents.latent_channels, 32, 32)
    start_from_condition(model, lq, torch.Generator().manual_seed(0), one_step=True)
    inputs = torch.cat([lq, x], dim=1)
    with torch.no_grad():
        velocity = model(inputs, torch.ones(2))
        assert torch.equal(model(inputs, torch.full((2,), 0.5)), velocity)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(inputs, torch.ones(2))
    assert (x - velocity - lq).square().mean().sqrt() < 0.03
    assert (x - half - lq).square().mean().sqrt() < 0.05


def test_conditioned_start_needs_room_for_its_channels():
    args = {**PRESETS["nano"], "dim": 128, "num_heads": 4}
    model = make_model(args, make_latents(args, None), checkpointing=False)
    with pytest.raises(ValueError, match="hidden size 128 cannot hold 96 input values"):
        start_from_condition(model, torch.randn(1, 12, 32, 32), torch.Generator())


def test_batches_depend_on_seed_and_step_alone(photos):
    def batches(seed: int) -> PairBatches:
        images = [np.asarray(Image.open(path)) for path in sorted(photos.iterdir())]
        return PairBatches([(1.0, images)], SimpleRange(), 10, 3, 16, 48, 2, seed)

    hq, lq = batches(1)[7]
    assert hq.shape == lq.shape == (3, 3, 16, 16)
    assert hq.abs().max() <= 1
    again = batches(1)
    _ = again[3]
    assert torch.equal(again[7][0], hq)
    assert torch.equal(again[7][1], lq)
    assert not torch.equal(batches(2)[7][0], hq)
    assert not torch.equal(batches(1)[8][0], hq)


def test_learning_rate_warms_up_holds_and_falls():
    options = TrainOptions(steps=100, learning_rate=1.0, warmup=10, cooldown=20)
    rates = [options.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:80] == [1.0] * 71
    assert rates[80:] == sorted(rates[80:], reverse=True)
    assert 0 < rates[99] < 0.01


def test_procedural_images_repeat_and_differ():
    first = make_image(np.random.default_rng((0, 5)), 64)
    assert first.shape == (64, 64, 3)
    assert first.min() >= 0
    assert first.max() <= 1
    assert np.array_equal(first, make_image(np.random.default_rng((0, 5)), 64))
    assert not np.array_equal(first, make_image(np.random.default_rng((0, 6)), 64))


def test_muon_takes_the_blocks_matrices_at_adamws_update_size():
    """Where a gradient has full rank, the update's root mean square is about 0.2 of the learning rate."""
    args = {**PRESETS["nano"], "depth": 1}
    model = make_model(args, make_latents(args, None), checkpointing=False)
    _, muon = make_optimizers(model, TrainOptions(steps=1, optimizer="muon", learning_rate=1.0, weight_decay=0.0))
    (group,) = muon.param_groups
    names = {name for name, value in model.named_parameters() if any(value is taken for taken in group["params"])}
    assert names == {f"blocks.0.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3")}
    before = [value.detach().clone() for value in group["params"]]
    for value in group["params"]:
        value.grad = torch.randn_like(value)
    muon.step()
    for value, old in zip(group["params"], before, strict=True):
        assert (value - old).square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25), value.shape


class ConstantVelocity:
    """A network whose velocity does not depend on anything."""

    def __init__(self, value: torch.Tensor):
        self.value = value

    def __call__(self, x, t, r=None, z=None):
        return self.value.expand(x.shape[0], -1, -1, -1)


@pytest.mark.parametrize("method", ["rcgm", "shortcut"])
def test_a_student_with_the_teachers_straight_field_has_no_loss(method):
    """On a constant field one long step equals many short ones, so both consistency terms vanish."""
    field = ConstantVelocity(torch.randn(1, 4, 8, 8))
    hq, lq, eps = torch.randn(3, 4, 4, 8, 8)
    condition = ConditionScheme().conditions(lq, None, 0.1, torch.randn(4), torch.randn(4, 4, 8, 8), torch.rand(4))
    t, r = torch.tensor([0.9, 0.5, 1.0, 0.3]), torch.tensor([0.1, 0.499, 0.0, 0.3])
    total, instantaneous = Distillation(method).losses(field, field, hq, condition, t, r, eps)
    assert instantaneous.item() == pytest.approx(0, abs=1e-10)
    assert total.item() == pytest.approx(0, abs=1e-8)


def test_weak_samples_see_little_of_the_input():
    lq, z = torch.ones(4, 1, 2, 2), torch.ones(4, 3, 5)
    mixed: Conditions = ConditionScheme(weak_ratio=0.5, strength_mean=50.0).conditions(
        lq, z, 0.2, torch.zeros(4), torch.randn(4, 1, 2, 2), torch.tensor([0.1, 0.9, 0.4, 0.6])
    )
    assert torch.allclose(mixed.lq[:, 0, 0, 0], torch.tensor([0.2, 1.0, 0.2, 1.0]))
    assert mixed.z is not None
    assert mixed.z[:, 0, 0].tolist() == [0, 1, 0, 1]


def test_networks_keep_the_released_names():
    options = train_vosr.parse(["flow", "--out", "x", "--steps", "1"])
    model = train_vosr.starting_point(options)[2]
    assert isinstance(model, VOSRDiT)
    assert "blocks.0.attn.qkv.weight" in model.state_dict()
    assert not any(name.startswith("module.") for name in model.state_dict())
