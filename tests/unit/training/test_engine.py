"""The training engine on a small method: steps, turns, resume, divergence, samples, dry runs."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from harness.training_method import Denoiser, DenoiserConfig
from realisr.training.engine.average import Average
from realisr.training.engine.batches import FORKS, MicroBatches, SampleError, micro_batches
from realisr.training.engine.checkpoints import CheckpointError, checkpoints, newest_checkpoint
from realisr.training.engine.dry_run import describe, write_first_batch
from realisr.training.engine.engine import Diverged, Engine
from realisr.training.engine.estimate import measure_activations
from realisr.training.engine.optimizers import rate_factor

BASE = {"precision": "fp32", "workers": 0, "batch": 2, "log": {"every": 1, "trackers": []}, "steps": 4}


def denoiser(out: Path, **settings: Any) -> Denoiser:
    return Denoiser(DenoiserConfig.model_validate({**BASE, "out": out, **settings}))


def run(out: Path, **settings: Any) -> Engine:
    engine = Engine(denoiser(out, **settings))
    engine.run()
    return engine


def log_of(out: Path, name: str = "loss") -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in engine.trained.items()}


def test_a_run_learns_and_writes_what_the_nodes_would_load(tmp_path: Path) -> None:
    settings = {"steps": 60, "optimizer": {"learning_rate": 1e-2}, "validation": {"every": 20}}
    engine = run(tmp_path, **settings)
    losses = log_of(tmp_path)
    assert sum(losses[step] for step in range(51, 61)) < 0.6 * sum(losses[step] for step in range(1, 11))
    figures = log_of(tmp_path, "validation/psnr")
    assert sorted(figures) == [20, 40, 60] and figures[60] > log_of(tmp_path, "validation/psnr_lq")[60]
    exported = load_file(tmp_path / "denoiser.safetensors")
    assert weights(engine).keys() == exported.keys()
    assert all(torch.equal(exported[name], value) for name, value in weights(engine).items())
    with Image.open(tmp_path / "samples" / "restored_00000060.png") as picture:
        assert picture.size == (3 * 20 + 4, 2 * 20 + 4)


def test_the_steps_since_the_last_line_are_logged_at_the_end(tmp_path: Path) -> None:
    run(tmp_path / "each", steps=5)
    run(tmp_path / "threes", steps=5, log={"every": 3, "trackers": []})
    each, threes = log_of(tmp_path / "each"), log_of(tmp_path / "threes")
    assert list(threes) == [3, 5] and threes[5] == pytest.approx((each[4] + each[5]) / 2)


def test_tensorboard_has_the_curves_and_the_samples(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, validation={"every": 2}, log={"every": 1, "trackers": ["tensorboard"]})
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events))
    read.Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, 2, 3, 4]
    pictures = read.Images("restored")
    assert [picture.step for picture in pictures] == [2, 4]
    assert (pictures[0].width, pictures[0].height) == (3 * 20 + 4, 2 * 20 + 4)


class NoPhotos:
    """Samples of which none can be made."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> Any:
        raise SampleError("100 photos in a row cannot be used")


@pytest.mark.parametrize("workers", [0, 1])
def test_unusable_photos_end_a_run_with_their_reason_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(Denoiser, "samples", lambda self: NoPhotos())
    with pytest.raises(SampleError) as error:
        run(tmp_path, workers=workers)
    assert str(error.value) == "100 photos in a row cannot be used"


def test_a_validation_that_fails_loses_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory for the validation")

    monkeypatch.setattr(Denoiser, "restore", too_large)
    with pytest.raises(torch.OutOfMemoryError):
        run(tmp_path, validation={"every": 2}, checkpoints={"every": 2})
    assert newest_checkpoint(tmp_path / "checkpoints", print).step == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ema": 0.9, "dropout": 0.5, "accumulate": 2},
        {"critic": True, "optimizer": {"name": "adamw", "weight_decay": 0.1}},
        {"optimizer": {"name": "prodigy", "learning_rate": 1.0}},
        {"optimizer": {"name": "muon"}, "schedule": {"warmup": 3, "cooldown": 4}},
    ],
    ids=["plain", "average, dropout, accumulation", "two turns", "prodigy", "muon"],
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    unbroken = run(tmp_path / "unbroken", **{**settings, "steps": 7})
    broken = Engine(denoiser(tmp_path / "broken", **{**settings, "steps": 7, "checkpoints": {"every": 3}}))
    broken.should_stop = lambda asked: broken.step == 3  # type: ignore[method-assign]
    broken.run()
    assert broken.step == 3
    resumed = run(tmp_path / "broken", **{**settings, "steps": 7})
    assert resumed.step == 7
    for name, value in weights(unbroken).items():
        assert torch.equal(value, weights(resumed)[name]), name
    if resumed.average is not None and unbroken.average is not None:
        assert all(torch.equal(value, resumed.average.values[name]) for name, value in unbroken.average.values.items())
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "unbroken")


@pytest.mark.parametrize("name", ["adamw", "prodigy", "muon"])
def test_a_resumed_run_takes_new_settings_of_its_optimizer(tmp_path: Path, name: str) -> None:
    run(tmp_path, steps=2, optimizer={"name": name, "weight_decay": 0.1})
    resumed = Engine(denoiser(tmp_path, steps=4, optimizer={"name": name, "weight_decay": 0.3, "betas": [0.8, 0.9]}))
    assert resumed.step == 2
    groups = [group for part in resumed.optimizers["train"].optimizers for group in part.param_groups]
    assert {group["weight_decay"] for group in groups} == {0.3}
    assert {tuple(group["betas"]) for group in groups if "betas" in group} == {(0.8, 0.9)}
    assert all(part.state for part in resumed.optimizers["train"].optimizers)


def test_each_turn_moves_its_own_parameters_alone(tmp_path: Path) -> None:
    engine = Engine(denoiser(tmp_path, critic=True))
    before = weights(engine)
    batch = {**engine.method.samples()[0], "number": torch.zeros(1)}
    batch["hq"] = batch["hq"][None]
    prepared = engine.method.prepare(batch, engine_draws())
    engine.take_turn("critic", [(0, prepared, engine_draws())])
    after = weights(engine)
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"critic"}
    assert all(value.grad is None for value in engine.trained.values())


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    engine = Engine(denoiser(tmp_path, ema=0.5))
    assert engine.average is not None
    with torch.no_grad():
        engine.average.values["denoiser.0.bias"][1] = math.inf
    with pytest.raises(Diverged, match=r"denoiser\.0\.bias holds values that are no numbers"):
        engine.save()
    assert newest_checkpoint(tmp_path / "checkpoints", print) is None


@pytest.mark.skipif(not FORKS, reason="workers are forked on Linux alone")
def test_workers_are_not_sent_the_method(tmp_path: Path) -> None:
    """Whatever way of starting processes is the default; Python 3.14 changed it."""
    batches = MicroBatches(denoiser(tmp_path))
    batches.unpicklable = lambda: None  # type: ignore[attr-defined]
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        found = [number for parts in micro_batches(batches, 0, 2, 1, 0, 1, 1) for number, _ in parts]
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert found == [0, 1]


def test_a_turn_may_begin_late(tmp_path: Path) -> None:
    engine = run(tmp_path, critic=True, critic_from=18, steps=20)
    assert sorted(log_of(tmp_path, "critic/loss")) == [19, 20]
    assert sorted(log_of(tmp_path, "train/loss")) == list(range(1, 21))
    assert sorted(engine.optimizers) == ["critic", "train"]


def engine_draws():
    from realisr.training.engine.draws import Draws

    return Draws(0, 0)


def test_accumulating_equals_a_larger_batch(tmp_path: Path) -> None:
    large = run(tmp_path / "large", batch=4, accumulate=1, steps=1, gradient_clip=None)
    parts = run(tmp_path / "parts", batch=2, accumulate=2, steps=1, gradient_clip=None)
    assert large.step == parts.step == 1
    # The noise is drawn by micro-batch, so the losses are near, not equal; the samples are the same.
    assert log_of(tmp_path / "large")[1] == pytest.approx(log_of(tmp_path / "parts")[1], rel=0.2)


def test_a_diverged_step_leaves_the_checkpoint_whole(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"step 4: the train loss is nan.*learning_rate"):
        run(tmp_path, steps=8, checkpoints={"every": 3}, explode_at=6)
    saved = newest_checkpoint(tmp_path / "checkpoints", print)
    assert saved is not None and saved.step == 3
    assert all(torch.isfinite(value).all() for value in saved.network.values())


def test_a_signal_saves_and_ends_the_run(tmp_path: Path) -> None:
    engine = Engine(denoiser(tmp_path, steps=1000))
    step = engine.train_step

    def interrupted(parts):
        if engine.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(parts)

    engine.train_step = interrupted  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGTERM)
    engine.run()
    assert engine.step == 5
    assert [step for step, _ in checkpoints(tmp_path / "checkpoints")] == [5]
    assert signal.getsignal(signal.SIGTERM) is before


def test_old_checkpoints_go_and_damaged_ones_are_passed_over(tmp_path: Path) -> None:
    run(tmp_path, steps=6, checkpoints={"every": 2, "keep": 2})
    folder = tmp_path / "checkpoints"
    assert [step for step, _ in checkpoints(folder)] == [6, 4]
    network = folder / "step_00000006" / "network.safetensors"
    network.write_bytes(network.read_bytes()[:-5])
    told: list[str] = []
    saved = newest_checkpoint(folder, told.append)
    assert saved is not None and saved.step == 4
    assert "step_00000006" in told[0] and "bytes" in told[0]
    optimizers = folder / "step_00000004" / "optimizers.pt"
    content = bytearray(optimizers.read_bytes())
    content[:100] = bytes(100)
    optimizers.write_bytes(content)
    with pytest.raises(CheckpointError, match="No older checkpoint is left"):
        newest_checkpoint(folder, told.append)


def test_a_run_of_another_network_is_not_gone_on_with(tmp_path: Path) -> None:
    run(tmp_path, steps=1)
    with pytest.raises(CheckpointError, match=r"another network.*Set `out`"):
        Engine(denoiser(tmp_path, steps=2, hidden=5))
    with pytest.raises(CheckpointError, match="with the optimizer adamw, not muon"):
        Engine(denoiser(tmp_path, steps=2, optimizer={"name": "muon"}))


def test_what_cannot_be_read_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(tmp_path, steps=3, fail_at=2)
    lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"path": "broken.jpg", "reason": "cut short"}]
    assert log_of(tmp_path, "skipped") == {2: 1.0, 3: 1.0}


def test_the_average_follows_and_is_swapped_in_and_out() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    average = Average({"w": parameter}, 0.9)
    with torch.no_grad():
        parameter.fill_(1)
    average.update(0)
    assert torch.allclose(average.values["w"], torch.full((3,), 0.9))
    with average.in_place():
        assert torch.allclose(parameter, torch.full((3,), 0.9))
    assert torch.equal(parameter, torch.ones(3))


def test_the_rate_warms_up_and_cools_down() -> None:
    from realisr.training.engine.config import ScheduleSettings

    schedule = ScheduleSettings(warmup=4, cooldown=10)
    rates = [rate_factor(schedule, step, 30) for step in range(30)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[20] == 1.0
    assert rates[25] == pytest.approx(0.5) and 0 < rates[29] < 0.03
    assert rates == sorted(rates[:4]) + [1.0] * 16 + sorted(rates[20:], reverse=True)


def test_a_dry_run_counts_and_shows_the_first_batch(tmp_path: Path) -> None:
    method = denoiser(tmp_path, optimizer={"name": "adamw"}, ema=0.9)
    lines = describe(method)
    parameters = 3 * 4 * 9 + 4 + 4 * 3 * 9 + 3 + 3 * 3 + 3
    assert lines[0] == f"trained parameters {parameters}, frozen 12"
    assert any("32 steps" in line for line in lines)
    (path,) = write_first_batch(method)
    with Image.open(path) as picture:
        assert picture.size == (2 * 20 + 4, 2 * 20 + 4)


def test_the_activation_estimate_is_what_a_forward_pass_keeps(tmp_path: Path) -> None:
    method = denoiser(tmp_path, batch=3)
    method.build(torch.device("meta"))
    real = denoiser(tmp_path, batch=3)
    real.build(torch.device("cpu"))
    assert measure_activations(method, "train") == kept_bytes(real)


def kept_bytes(method: Denoiser) -> int:
    from realisr.training.engine.estimate import SavedTensors

    batch = method.example_batch()
    kept = SavedTensors(method.network, batch)
    with kept.counting():
        loss = method.network("train", batch, engine_draws())["loss"]
    assert math.isfinite(float(loss.detach()))
    return kept.bytes
