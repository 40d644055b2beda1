"""Runs that are killed, starved of disk, damaged or diverging lose nothing: the engine, shown on VOSR."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.training import (
    TrainingServer,
    assert_equal_tensors,
    figures,
    newest_weights,
    wait_for_step,
    write_config,
)

STEPS = 12


@pytest.fixture(scope="module")
def finished(server: TrainingServer, make_settings, tmp_path_factory) -> Path:
    """A run of six steps with checkpoints at 4 and 6."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    server.run("--config", write_config(folder.with_suffix(".yaml"), make_settings(folder, steps=6)))
    return folder


@pytest.fixture
def copy(finished: Path, make_settings, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """(folder, YAML) of a copy of that run; broken_off: without the checkpoint of its end."""

    def make(name: str = "run", broken_off: bool = False, **changes: Any) -> tuple[Path, Path]:
        folder = tmp_path / name
        shutil.copytree(finished, folder)
        if broken_off:
            shutil.rmtree(newest(folder))
        return folder, write_config(tmp_path / f"{name}.yaml", make_settings(folder, **{"steps": 6, **changes}))

    return make


def newest(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("step_????????"))[-1]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.partial")]


def assert_same_end(actual: Path, expected: Path) -> None:
    """Losses, trained and averaged weights, the optimizer's state and the files for the nodes, bit for bit."""
    assert figures(actual) == figures(expected)
    assert figures(actual, "gradient_norm") == figures(expected, "gradient_norm")
    assert_equal_tensors(newest_weights(actual), newest_weights(expected))
    for name in ("average.safetensors", "../ema_model.safetensors", "../../vosr.safetensors"):
        assert_equal_tensors(load_file(newest(actual) / name), load_file(newest(expected) / name))
    states = [torch.load(newest(run) / "optimizers.pt", weights_only=True) for run in (actual, expected)]
    assert equal(*states)
    assert not leftovers(actual)


def equal(first: Any, second: Any) -> bool:
    """Whether two states are the same, tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_five_kills_change_nothing(server: TrainingServer, make_settings, tmp_path, optimizer):
    recipe = {
        "steps": STEPS,
        "start": "condition",
        "optimizer": {"name": optimizer, "learning_rate": 1e-3, "edge_rate": 0.1},
        "schedule": {"warmup": 3, "cooldown": 5},
        "accumulate": 2,
        "checkpoints": {"every": 3, "keep": 1},
    }
    whole = write_config(tmp_path / "whole.yaml", make_settings(tmp_path / "whole", **recipe))
    broken = write_config(tmp_path / "broken.yaml", make_settings(tmp_path / "broken", **recipe))
    server.run("--config", whole)
    rng = np.random.default_rng(10)
    for last in sorted(rng.choice(np.arange(1, STEPS), 5, replace=False)):
        run = server.start("--config", broken)
        wait_for_step(tmp_path / "broken", int(last), run)
        time.sleep(rng.uniform(0, 0.05))
        run.kill()
        assert run.wait() == -signal.SIGKILL, run.text
    server.run("--config", broken)
    assert_same_end(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.slow
def test_a_kill_at_any_point_of_writing_a_checkpoint(server: TrainingServer, finished, copy):
    """From step 4 to the end at 6, dying at every file and folder operation of saving in turn."""
    deaths = 0
    for point in range(100):
        folder, config = copy(f"broken_{point}", broken_off=True, checkpoints={"every": 2, "keep": 1})
        status = server.start("--config", config, die_at=point).wait()
        if status == 0:
            break
        assert status == -signal.SIGKILL
        deaths += 1
        server.run("--config", config)
        assert_same_end(folder, finished)
        shutil.rmtree(folder)
    assert deaths >= 12, "saving has fewer steps than it must have"


def test_an_interrupt_saves_first(server: TrainingServer, make_settings, tmp_path):
    recipe = {"steps": STEPS, "checkpoints": {"every": 1000}}
    server.run("--config", write_config(tmp_path / "whole.yaml", make_settings(tmp_path / "whole", **recipe)))
    config = write_config(tmp_path / "broken.yaml", make_settings(tmp_path / "broken", **recipe))
    run = server.start("--config", config)
    wait_for_step(tmp_path / "broken", 2, run)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait() == 0, run.text
    taken = max(figures(tmp_path / "broken"))
    assert taken == STEPS or f"stopped at step {taken}" in run.text
    again = server.run("--config", config)
    assert taken == STEPS or f"going on from step {taken}" in again.text
    assert_same_end(tmp_path / "broken", tmp_path / "whole")


def test_a_full_disk_loses_nothing(server: TrainingServer, finished, copy):
    folder, config = copy(broken_off=True, checkpoints={"every": 2, "keep": 1})
    before = newest_weights(folder)
    largest = (newest(folder) / "optimizers.pt").stat().st_size
    for limit in (100_000, largest - 1):  # the network's file does not fit, or only the optimizers' does not
        run = server.start("--config", config, largest_file=limit)
        assert run.wait() == 1
        assert "error: cannot write the checkpoint" in run.text and "Traceback" not in run.text
        assert "The older checkpoints are whole" in run.text
        assert_equal_tensors(newest_weights(folder), before)
        assert not leftovers(folder)
    server.run("--config", config)
    assert_same_end(folder, finished)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("network.safetensors", "cut"),
        ("network.safetensors", "flipped"),
        ("average.safetensors", "gone"),
        ("optimizers.pt", "flipped"),
        ("state.json", "flipped"),
        ("state.json", "gone"),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_an_older_one(server: TrainingServer, finished, copy, name, damage):
    folder, config = copy(checkpoints={"every": 2, "keep": 1})
    hurt(newest(folder) / name, damage)
    run = server.run("--config", config)
    assert "going on from step 4" in run.text
    # A checkpoint without its state is what a killed write leaves: nothing to complain about.
    assert ("trying an older one" in run.text) == (damage != "gone" or name != "state.json"), run.text
    assert_same_end(folder, finished)


def test_a_new_checkpoint_is_not_deleted_for_a_damaged_later_one(server: TrainingServer, copy):
    """With one to keep, and the damaged one of step 6 still there when step 5 is saved."""
    folder, config = copy(checkpoints={"every": 1, "keep": 1})
    hurt(newest(folder) / "network.safetensors", "cut")
    server.run("--config", config, "steps=5")
    assert newest(folder).name == "step_00000005"
    assert "going on from step 5" in server.run("--config", config).text


def test_damage_to_all_checkpoints_is_an_error(server: TrainingServer, copy):
    folder, config = copy()
    found = sorted((folder / "checkpoints").glob("step_*"))
    assert len(found) == 2
    for path in found:
        hurt(path / "network.safetensors", "cut")
    run = server.start("--config", config)
    assert run.wait() == 1
    assert "error: " in run.text and str(found[-1]) in run.text and "No older checkpoint is left" in run.text
    assert sorted((folder / "checkpoints").glob("step_*")) == found


def hurt(path: Path, damage: str) -> None:
    """Cut a file, change a byte in its middle, or delete it."""
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 0x55
        path.write_bytes(content)


@pytest.mark.parametrize("rate", [1e15, 1e38])
def test_divergence_stops_the_run_and_keeps_what_was_good(server: TrainingServer, copy, rate):
    """Six good steps are saved; with a huge rate, saving every step, no state that diverged stays."""
    folder, config = copy(steps=12, checkpoints={"every": 1, "keep": 1})
    run = server.start("--config", config, f"optimizer.learning_rate={rate}")
    assert run.wait() == 1
    assert "optimizer.learning_rate" in run.text and "Traceback" not in run.text
    again = server.run("--config", config, "steps=7")
    assert "going on from step 6" in again.text, again.text
    assert all(value.isfinite().all() for value in newest_weights(folder).values())
    assert all(np.isfinite(list(figures(folder).values())))


def test_another_network_does_not_go_on_from_this_one(server: TrainingServer, copy):
    _, config = copy()
    run = server.start("--config", config, "model.depth=2")
    assert run.wait() == 1
    assert "holds a run of another network" in run.text and "Set `out` to a new folder" in run.text
