"""VOSR's runs: settings that are checked, what a step is made of, starting points, exports, dry runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import train
import vosr_file
from harness.autoencoders import sd21_vae
from harness.checkpoints import dinov2
from harness.training import TrainingServer, assert_equal_tensors, assert_two_processes_equal_one, figures, write_config
from realisr.training.engine.config import read_config
from realisr.training.engine.draws import Draws
from realisr.training.engine.optimizers import make_optimizers
from realisr.training.vosr.config import VOSRRunConfig
from realisr.training.vosr.method import VOSRMethod
from realisr.training.vosr.network import VELOCITY
from realisr.training.vosr.presets import PRESETS, make_network
from realisr.training.vosr.start import start_from_condition
from realisr.training.vosr.weights import load_model, load_weights, write_folder

CONFIGS = sorted((Path(train.__file__).parents[1] / "training" / "configs").glob("vosr_*.yaml"))
CPU = torch.device("cpu")


@pytest.fixture
def make(make_settings, tmp_path: Path) -> Callable[..., VOSRMethod]:
    """A built method of a tiny run."""

    def make(**changes: Any) -> VOSRMethod:
        method = VOSRMethod(VOSRRunConfig.model_validate(make_settings(tmp_path / "run", **changes)))
        method.build(CPU)
        return method

    return make


@pytest.fixture(scope="module")
def teacher(server: TrainingServer, make_settings, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    server.run("--config", write_config(folder.with_suffix(".yaml"), make_settings(folder, steps=2)))
    return folder


def first_batch(method: VOSRMethod) -> tuple[dict[str, Any], Draws]:
    samples = method.samples()
    items = [{key: value for key, value in samples[n].items() if key != "skipped"} for n in range(method.config.batch)]
    draws = Draws(method.config.seed, 0)
    return method.prepare(method.collate(items), draws), draws


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_settings_are_valid_and_the_papers(path):
    config = read_config(path, [], VOSRRunConfig)
    if path.stem == "vosr_nano":
        assert config.posterior_mean
        return
    distill = path.stem == "vosr_distill"
    assert config.mode == ("distill" if distill else "flow")
    assert (config.optimizer.learning_rate, config.optimizer.betas) == (2e-5 if distill else 5e-5, (0.9, 0.95))
    assert (config.ema, config.gradient_clip, config.data.crop) == (0.9999, 1.0, 512)
    assert config.batch * config.accumulate == (32 if distill else 8)
    assert config.steps == (100_000 if distill else 400_000)
    assert [each.kind for each in config.data.degradation] == ["real_world"]
    assert not any(config.data.augment.model_dump().values())
    # What the file says beside the paths, lengths and where it looks is what is there without a file.
    plain = VOSRRunConfig(out=config.out, steps=1, data=config.data)
    assert config.condition == plain.condition and config.times == plain.times and config.balance is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "distill"}, "set distillation.teacher"),
        ({"distillation": {"teacher": "x"}}, "mode is flow, which has no teacher"),
        ({"mode": "distill", "distillation": {"teacher": "x"}, "balance": 0.1}, "does not read balance"),
        ({"mode": "distill", "distillation": {"teacher": "x"}, "start": "condition"}, "does not read start"),
        ({"weights": "x", "start": "condition"}, "start is of a new network"),
        ({"condition": {"weak_strengths": [0.3, 0.1]}}, "the smaller one comes first"),
        ({"cut": {"count": 4}}, "set cut.side"),
        ({"cache": "x"}, "set data.fixed_crops"),
        ({"cut": {"side": 32}}, "larger than data.crop of 16"),
    ],
)
def test_settings_that_contradict_each_other(make_settings, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        VOSRRunConfig.model_validate(make_settings(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"preset": "0.5B"}}, "needs its VAE: set vae to the vae folder of stable-diffusion-2-1-base"),
        ({"model": {"preset": "1.4B"}}, "needs its VAE: set vae to Qwen-Image-vae-2d"),
        ({"vae": "x.safetensors"}, "takes no VAE"),
        ({"vision": "x.pth"}, "reads no vision features"),
        ({"model": {"preset": "nano", "enc_dim": 4}, "vision": None}, "set vision to its file"),
        ({"model": {"preset": "0.5B", "ae_downscale": 4}}, "model.ae_downscale: a model with ae_type 'sd2' has no"),
        ({"model": {"preset": "nano", "patch_size": 3}}, "data.crop is 16: this model needs a multiple of 6"),
        ({"model": {"preset": "nano", "dim": 96, "num_heads": 3}, "start": "condition"}, "hidden size 96 cannot hold"),
    ],
)
def test_models_that_cannot_be_built(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_step_is_made_of_latents_of_both_pictures(make):
    method = make(cut={"side": 8, "count": 3}, batch=2)
    pictures = method.pictures({"hq": torch.rand(2, 3, 16, 16)}, Draws(0, 5))
    assert pictures["hq"].shape == pictures["lq"].shape == (6, 3, 8, 8)
    batch, draws = first_batch(method)
    assert batch["hq"].shape == batch["lq"].shape == (6, 12, 4, 4)
    example, made = ({name: value.shape for name, value in each.items()} for each in (method.example_batch(), batch))
    assert example == made
    losses = method.network("train", batch, draws)
    again, repeated = first_batch(method)
    assert torch.equal(losses["loss"], method.network("train", again, repeated)["loss"])


def test_latents_of_clean_crops_are_kept(make, make_settings, photos, tmp_path):
    """With a cache a step is what it is without, and the VAE sees each clean crop once."""
    save_file(sd21_vae(), tmp_path / "vae.safetensors")
    save_file(dinov2(width=64, depth=2), tmp_path / "dino.safetensors")
    model = {"preset": "0.5B", "dim": 64, "depth": 1, "num_heads": 2, "resolution": 16, "enc_dim": 64}
    (tmp_path / "args.json").write_text(json.dumps({**PRESETS["0.5B"], "layer_dinov2b_list": [0], "dinov2_size": 56}))
    data = {**make_settings(tmp_path)["data"], "fixed_crops": 1}
    common = {
        "model": {**model, "args_file": str(tmp_path / "args.json")},
        "vae": str(tmp_path / "vae.safetensors"),
        "vision": str(tmp_path / "dino.safetensors"),
        "data": data,
    }
    expected = first_batch(make(**common))[0]
    for encoded in (4, 2):  # images: those of both kinds, then the degraded ones alone
        method = make(**common, cache=str(tmp_path / "cache"))
        seen, moments = [], method.latents.moments
        method.latents.moments = lambda image, seen=seen, moments=moments: (seen.append(len(image)), moments(image))[1]
        found = first_batch(method)[0]
        assert sum(seen) == encoded
        assert found.keys() == expected.keys() == {"hq", "lq", "z"}
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def test_squares_are_cut_at_the_same_places_of_both_pictures(make):
    method = make(cut={"side": 8, "count": 3})
    method.degradations = lambda hq, draws: hq / 2
    pictures = method.pictures({"hq": torch.rand(2, 3, 16, 16)}, Draws(0, 5))
    assert torch.equal(pictures["lq"], pictures["hq"] / 2)
    assert not torch.equal(pictures["hq"][0], pictures["hq"][1])


def test_the_condition_start_is_the_linear_estimator():
    """At t = 1 the velocity is x - lq; at t = 0.5 the best linear one for white noise of variance 0.03."""
    dit = make_network(PRESETS["nano"], 12, CPU, False, 0)
    lq, x = torch.randn(2, 2, 12, 32, 32)
    start_from_condition(dit, lq, torch.Generator().manual_seed(0))
    with torch.no_grad():
        at_noise = dit(torch.cat([lq, x], dim=1), torch.ones(2))
        halfway = dit(torch.cat([lq, x], dim=1), torch.full((2,), 0.5))
    assert (at_noise - (x - lq)).square().mean().sqrt() < 0.03
    a = (0.5 - 0.5 * 0.03) / (0.25 + 0.25 * 0.03)
    assert (halfway - (a * x - (1 + 0.5 * a) * lq)).square().mean().sqrt() < 0.15


def test_the_start_for_one_step_copies_the_condition_and_knows_no_time():
    dit = make_network(PRESETS["nano"], 12, CPU, False, 0)
    start_from_condition(dit, torch.randn(8, 12, 16, 16), torch.Generator().manual_seed(0), one_step=True)
    lq, x = torch.randn(2, 2, 12, 32, 32)
    with torch.no_grad():
        early, late = (dit(torch.cat([lq, x], dim=1), torch.full((2,), t)) for t in (1.0, 0.2))
    assert torch.equal(early, late)
    assert (early - (x - lq)).square().mean().sqrt() < 0.03


@pytest.mark.parametrize("mode", ["flow", "rcgm", "shortcut"])
def test_half_precision_reaches_every_parameter(make, teacher, mode):
    """What autocast keeps of a forward without gradient must not be used by one with."""
    distill = {"mode": "distill", "model": {}, "distillation": {"teacher": str(teacher), "method": mode}}
    method = make(precision="bf16", **({} if mode == "flow" else distill))
    with torch.no_grad():  # an untrained final layer gives nothing a gradient
        for value in method.network.parameters():
            value.add_(0.02 * torch.randn_like(value))
    batch, draws = first_batch(method)
    with torch.autocast("cpu", torch.bfloat16):
        method.network("train", batch, draws)["loss"].backward()
    silent = [name for name, value in method.parameters("train") if value.grad is None or not value.grad.any()]
    assert not silent


def test_compiled_networks_give_the_same_loss(make):
    """By a backend that runs the captured graphs as they are."""
    method = make()
    torch.nn.init.normal_(method.dit.final_layer.linear.weight, generator=torch.Generator().manual_seed(1))
    names = [name for name, _ in method.parameters("train")]
    plain = method.network("train", *first_batch(method))["loss"].item()
    method.network.compile(backend="eager")
    assert method.network("train", *first_batch(method))["loss"].item() == pytest.approx(plain, rel=1e-5)
    assert method.dit._compiled_call_impl is not None
    assert [name for name, _ in method.parameters("train")] == names


def test_checkpointing_changes_memory_not_gradients(make):
    found = []
    for checkpointing in (False, True):
        method = make(gradient_checkpointing=checkpointing, model={"preset": "nano", "resolution": 16, "depth": 2})
        torch.nn.init.normal_(method.dit.final_layer.linear.weight, generator=torch.Generator().manual_seed(1))
        batch, draws = first_batch(method)
        method.network("train", batch, draws)["loss"].backward()
        found.append({name: value.grad for name, value in method.parameters("train")})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-7)


def test_muon_takes_the_blocks_matrices_and_edges_have_a_rate(make):
    method = make(optimizer={"name": "muon", "edge_rate": 0.1})
    adamw, muon = make_optimizers(method.config.optimizer, method.parameter_groups("train"))
    names = {id(value): name for name, value in method.parameters("train")}
    matrices = {names[id(value)] for group in muon.param_groups for value in group["params"]}
    assert matrices == {f"dit.blocks.0.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3")}
    rates = {names[id(value)]: group["rate"] for group in adamw.param_groups for value in group["params"]}
    assert rates["dit.x_embedder.proj.weight"] == rates["dit.final_layer.linear.weight"] == 0.1
    assert rates["dit.t_block.1.weight"] == 1.0


def test_exports_load_strictly_and_carry_their_args(teacher, tmp_path):
    args, model = load_model(teacher)
    assert args["dim"] == 160 and "distill_type" not in args
    with safe_open(teacher / "vosr.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["vosr_args"]) == args
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}
    vosr_file.main([str(teacher), str(tmp_path / "one.safetensors"), "--posterior-mean", "--fp32"])
    marked, again = load_model(tmp_path / "one.safetensors")
    assert marked == {**args, "distill_type": "posterior_mean"}
    assert_equal_tensors(again.state_dict(), model.state_dict())


def test_a_value_that_half_precision_cannot_hold_stays(make, tmp_path):
    method = make()
    tensors = {name: value.detach().clone() for name, value in method.parameters("train")}
    tensors["dit.t_block.1.bias"][0] = 1e6
    method.export(tmp_path, tensors, 1)
    exported = load_file(tmp_path / "vosr.safetensors")
    assert exported["t_block.1.bias"][0] == 1e6
    assert exported["t_block.1.weight"].dtype == torch.float16


def test_a_run_can_start_from_a_folder_or_a_file(make, teacher):
    expected = load_weights(teacher)[1]
    assert_equal_tensors(make(weights=str(teacher)).dit.state_dict(), expected)
    from_file = make(weights=str(teacher / "vosr.safetensors")).dit.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(from_file[name], value, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"depth is 2 in args\.json but 1 in the tensors"):
        make(weights=str(teacher), model={"preset": "nano", "resolution": 16, "dim": 160, "depth": 2, "num_heads": 5})


def test_a_student_starts_as_its_teacher(make, teacher, tmp_path):
    method = make(mode="distill", model={}, distillation={"teacher": str(teacher), "method": "rcgm"})
    expected = load_weights(teacher)[1]
    own = method.dit.state_dict()
    assert_equal_tensors({name: own[name] for name in expected}, expected)
    assert {name.split(".")[0] for name in own.keys() - expected.keys()} == {"r_embedder"}
    assert not any(value.requires_grad for value in method.network.teacher.parameters())
    method.export(tmp_path / "student", dict(method.parameters("train")), 1)
    with pytest.raises(ValueError, match="is a student itself"):
        make(mode="distill", model={}, distillation={"teacher": str(tmp_path / "student")})
    with pytest.raises(ValueError, match="says what the model is: leave out `model`"):
        make(mode="distill", distillation={"teacher": str(teacher)})


def test_a_constant_velocity_is_restored_exactly(make, photos):
    """With v = x0 - lq for all times, one step and many give the LQ image back."""
    method = make(validation={"images": [str(photos)], "count": 2}, sampling={"steps": 3, "guidance": 0.5})
    batch = method.validation()
    start = Draws(0, 1).normal(2, 12, 8, 8)

    class Straight(torch.nn.Module):
        def forward(self, turn: str, inputs: dict[str, torch.Tensor], draws: Draws) -> dict[str, torch.Tensor]:
            assert turn == VELOCITY
            return {"velocity": start - method.latents.posterior(batch["lq"] * 2 - 1).mean}

    method.network = Straight()
    restored = method.restore(batch, Draws(0, 1))
    torch.testing.assert_close(restored, batch["lq"], rtol=0, atol=1e-5)


def test_dry_run_says_what_it_takes(make_settings, tmp_path, capsys):
    settings = make_settings(tmp_path / "run", start="condition")
    train.main(["vosr", "--config", str(write_config(tmp_path / "run.yaml", settings)), "--dry-run"])
    text = capsys.readouterr().out
    dit = make_network({**PRESETS["nano"], "dim": 160, "depth": 1, "num_heads": 5}, 12, CPU, False, 0)
    fixed = [*dit.t_embedder.parameters(), *dit.final_layer.adaLN_modulation.parameters()]
    frozen = sum(value.numel() for value in fixed)
    trained = sum(value.numel() for value in dit.parameters()) - frozen
    assert f"trained parameters {trained:,}, frozen {frozen:,}" in text
    assert (tmp_path / "run" / "first_batch.png").is_file()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_accumulation(server: TrainingServer, make_settings, tmp_path):
    # With AdamW's own eps the rounding of a gradient of almost nothing would move a weight as far as any other.
    rate = {"name": "adamw", "learning_rate": 1e-3, "eps": 1e-3}
    settings = make_settings(tmp_path / "unused", steps=5, accumulate=2, optimizer=rate)
    assert_two_processes_equal_one(server, tmp_path, settings)
    assert len(set(figures(tmp_path / "one").values())) == 5
    assert np.isfinite(list(figures(tmp_path / "one").values())).all()


def test_folder_writes_are_atomic(tmp_path):
    write_folder(tmp_path, {"dim": 1}, {"a": torch.zeros(2)})
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        "args.json",
        "checkpoints/ema_model.safetensors",
    ]
