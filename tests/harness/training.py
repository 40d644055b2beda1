"""Trainings as separate processes, to be killed, starved of disk, resumed and compared; and small runs to train on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

SERVER = Path(__file__).with_name("training_server.py")
PATIENCE = 300
"""Seconds until a training that does nothing is taken to hang."""


def save_photos(folder: Path, count: int = 3, side: int = 64) -> Path:
    """A folder of photos, made from a seed: smooth colours, edges and texture."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[0:side, 0:side] / side
    for index in range(count):
        rng = np.random.default_rng((20, index))
        waves = [np.sin(rng.uniform(4, 40) * (rows * rng.normal() + columns * rng.normal())) for _ in range(3)]
        image = 0.5 + 0.3 * np.stack(waves, axis=-1)
        image[side // 4 : side // 2, side // 4 : -side // 8] = rng.uniform(0, 1, 3)
        image += rng.normal(0, 0.03, image.shape)
        Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8)).save(folder / f"{index}.png")
    return folder


def write_config(path: Path, settings: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@dataclass
class Run:
    """A training in a process of its own."""

    server: TrainingServer
    pid: int
    log: Path

    def wait(self) -> int:
        """Its exit status; -9 for one that was killed."""
        return self.server.status_of(self.pid)

    def kill(self) -> None:
        """SIGKILL, then wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    @property
    def text(self) -> str:
        """What it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


@dataclass
class TrainingServer:
    """Starts trainings of one method quickly (see training_server.py). A context manager."""

    folder: Path
    method: str
    statuses: dict[int, int] = field(default_factory=dict)
    _started: int = 0

    def __enter__(self) -> TrainingServer:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, str(SERVER), self.method]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.read() == {"ready": True}
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(PATIENCE)

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the training server has ended"
        return json.loads(line)

    def start(self, *arguments: Any, **request: Any) -> Run:
        """Start `scripts/train.py METHOD` with these arguments. request: environment, die_at, largest_file."""
        self._started += 1
        log = self.folder / f"run_{self._started}.log"
        message = {"arguments": [self.method, *map(str, arguments)], "log": str(log), **request}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        while True:
            answer = self.read()
            if "status" not in answer:
                return Run(self, answer["pid"], log)
            self.statuses[answer["pid"]] = answer["status"]

    def run(self, *arguments: Any, **request: Any) -> Run:
        """The same, to its end. Raises AssertionError with what it printed when it fails."""
        run = self.start(*arguments, **request)
        assert run.wait() == 0, run.text
        return run

    def run_together(self, processes: int, *arguments: Any, environment: Mapping[str, str] | None = None) -> list[Run]:
        """One training in several processes, as a launcher starts them, on gloo. environment: what it sets beside."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        world |= {"LOCAL_WORLD_SIZE": str(processes), "ACCELERATE_TORCH_DEVICE": "cpu"}
        world |= environment or {}
        ranks = [{**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        runs = [self.start(*arguments, environment=each) for each in ranks]
        for run in runs:
            assert run.wait() == 0, run.text
        return runs

    def status_of(self, pid: int) -> int:
        while pid not in self.statuses:
            answer = self.read()
            self.statuses[answer["pid"]] = answer["status"]
        return self.statuses[pid]


def figures(folder: Path, name: str = "loss") -> dict[int, float]:
    """A figure of log.jsonl by step; of a step that was taken again after a kill, the last."""
    log = folder / "log.jsonl"
    if not log.is_file():
        return {}
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]  # the last may be cut
    entries = [json.loads(line) for line in lines]
    return {entry["step"]: entry[name] for entry in entries if name in entry}


def wait_for_step(folder: Path, step: int, run: Run) -> None:
    """Until the log holds a step."""
    until = time.monotonic() + PATIENCE
    while max(figures(folder), default=0) < step:
        assert time.monotonic() < until, run.text
        time.sleep(0.005)


def newest_weights(folder: Path) -> dict[str, Tensor]:
    """The trained parameters of a run's newest checkpoint."""
    newest = sorted((folder / "checkpoints").glob("step_????????"))[-1]
    # Copies: the file may be damaged on purpose while they are in use.
    return {name: value.clone() for name, value in load_file(newest / "network.safetensors").items()}


def assert_equal_tensors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert actual.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert not different, f"{len(different)} of {len(expected)} differ, {different[0]} first"


def assert_two_processes_equal_one(
    server: TrainingServer, folder: Path, settings: dict[str, Any], tolerance: float = 1e-6
) -> None:
    """Train once in two processes and once in one with twice the accumulation; losses and weights agree.

    settings: of a run of a few steps with `log.every` 1, that ends with a checkpoint. tolerance: relative, of the
    losses, and of each parameter's norm.
    """
    two = {**settings, "out": str(folder / "two")}
    one = {**settings, "out": str(folder / "one"), "accumulate": 2 * settings.get("accumulate", 1)}
    server.run_together(2, "--config", write_config(folder / "two.yaml", two))
    server.run("--config", write_config(folder / "one.yaml", one))
    losses = [figures(folder / name) for name in ("two", "one")]
    assert list(losses[0]) == list(losses[1]) == list(range(1, settings["steps"] + 1))
    for step, expected in losses[1].items():
        assert abs(losses[0][step] - expected) <= tolerance * abs(expected), (step, losses[0][step], expected)
    first, second = newest_weights(folder / "two"), newest_weights(folder / "one")
    assert first.keys() == second.keys()
    for name, expected in second.items():
        error = (first[name].double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12)
        assert error <= tolerance, (name, float(error))
