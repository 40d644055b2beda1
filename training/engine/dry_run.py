"""A run's plan without running it: sizes from file headers, and the first batch to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .batches import SKIPPED, MicroBatches
from .draws import Draws
from .estimate import estimate
from .grids import grid, write_png
from .method import Method


def describe(method: Method[Any]) -> list[str]:
    """Lines about the network, its memory, and the run's length. Builds the method on the meta device."""
    config = method.config
    method.build(torch.device("meta"))
    images = config.batch * config.accumulate
    epoch = len(method.samples()) / images
    return [
        *estimate(method).lines(),
        f"precision {config.precision}, {config.batch} x {config.accumulate} images a step on each device",
        f"{config.steps} steps, {config.steps / epoch:.3g} epochs of {epoch:.6g} steps on one device",
        "Encoders, temporary tensors and the device's libraries come on top of the total; several devices share it as "
        "their launch configuration says.",
    ]


def write_first_batch(method: Method[Any]) -> list[Path]:
    """The pictures of micro-batch 0, LQ beside HQ, as out/first_batch.png."""
    batch = MicroBatches(method)[0]
    for path, reason in batch.pop(SKIPPED):
        print(f"skipped {path}: {reason}")
    pictures = method.pictures(batch, Draws(method.config.seed, 0))
    columns = [pictures[name] for name in ("lq", "hq") if name in pictures]
    return [write_png(method.config.out / "first_batch.png", grid(columns))]
