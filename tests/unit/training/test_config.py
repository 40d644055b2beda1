"""A run's YAML: what is wrong is said in its own terms."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.training_method import DenoiserConfig
from realisr.training.engine.config import read_config


def config_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_settings_come_from_the_file_and_the_command_line(tmp_path: Path) -> None:
    path = config_file(tmp_path, "out: runs/a\nsteps: 10\noptimizer:\n  name: prodigy\n  learning_rate: 1\n")
    config = read_config(
        path, ["steps=20", "optimizer.weight_decay=0.5", "ema=0.99", "log.trackers=[]"], DenoiserConfig
    )
    assert (config.steps, config.optimizer.name, config.optimizer.weight_decay) == (20, "prodigy", 0.5)
    assert config.ema == 0.99 and config.log.trackers == () and config.out == Path("runs/a")


def test_numbers_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    config = read_config(
        config_file(tmp_path, "out: a\nsteps: 1\noptimizer: {learning_rate: 5e-6}"), [], DenoiserConfig
    )
    assert config.optimizer.learning_rate == 5e-6  # YAML 1.1 reads 5e-6 as text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: a\nstep: 3", r"step: there is no such setting; did you mean 'steps'\?"),
        ("out: a", r"steps: this setting is needed"),
        ("out: a\nsteps: many", r"steps: input should be a valid integer.*not 'many'"),
        ("out: a\nsteps: 3\noptimizer: {lerning_rate: 1}", r"optimizer\.lerning_rate: .*did you mean 'learning_rate'"),
        ("out: a\nsteps: 3\noptimizer: {name: adam}", r"optimizer\.name: input should be 'adamw'.*not 'adam'"),
        ("out: a\nsteps: 0", r"steps: input should be greater than 0, not 0"),
        ("out: a\nsteps: 3\nema: 1.0", r"ema: input should be less than 1"),
        ("- 1", r"must hold `key: value` lines"),
        ("out: [", r"is not YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(config_file(tmp_path, text), [], DenoiserConfig)


@pytest.mark.parametrize(
    ("override", "message"),
    [("steps", "is no setting"), ("steps.x=1", "has no parts"), ("steps=[", "not YAML")],
)
def test_overrides_that_are_none(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(config_file(tmp_path, "out: a\nsteps: 3"), [override], DenoiserConfig)
