"""What a run tells: the bar, log.jsonl, trackers, and the list of what could not be read."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from .grids import write_png

SKIPPED = "skipped.jsonl"
LOG = "log.jsonl"


class Records:
    """Means over `every` steps, written by the first process alone."""

    def __init__(self, accelerator: Accelerator, folder: Path, first: int, steps: int, every: int, images: int):
        self.accelerator, self.folder, self.every, self.images = accelerator, folder, every, images
        self.steps = steps
        self.bar = tqdm(
            total=steps, initial=first, unit="step", dynamic_ncols=True, disable=not accelerator.is_main_process
        )
        self.sums: dict[str, float] = {}
        self.count = 0
        self.skipped: set[str] = set()
        self.started = time.monotonic()

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step; `step` counts from 1."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        self.bar.update()
        if step % self.every == 0 or step == self.steps:
            self.flush(step)

    def flush(self, step: int) -> None:
        seconds = (time.monotonic() - self.started) / self.count
        means = {name: value / self.count for name, value in self.sums.items()}
        speed = {"seconds_per_step": seconds, "images_per_second": self.images / seconds}
        memory = {"memory_gb": peak_memory()} if torch.cuda.is_available() else {}
        skipped = {"skipped": float(len(self.skipped))} if self.skipped else {}
        self.log(step, {**means, **speed, **memory, **skipped})
        losses = {name: f"{value:.4g}" for name, value in means.items() if name.rpartition("/")[2] == "loss"}
        shown = {**losses, "images/s": f"{speed['images_per_second']:.3g}"}
        self.bar.set_postfix({**shown, **{name: f"{value:.3g}" for name, value in {**memory, **skipped}.items()}})
        self.sums, self.count, self.started = {}, 0, time.monotonic()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Append a line to log.jsonl and tell the trackers."""
        self.accelerator.log(dict(figures), step=step)
        if self.accelerator.is_main_process:
            self.append(LOG, {"step": step, **{name: shortened(value) for name, value in figures.items()}})

    def picture(self, step: int, name: str, image: Tensor) -> None:
        """Write `[3, H, W]` in [0, 1] to samples/ and tell the trackers that take images."""
        if not self.accelerator.is_main_process:
            return
        write_png(self.folder / "samples" / f"{name}_{step:08d}.png", image)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                # TensorBoard takes channels first unless told; the others take them last and know no such argument.
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: image.permute(1, 2, 0)[None].numpy()}, step=step, **layout)

    def skip(self, entries: Sequence[tuple[str, str]]) -> None:
        """Note photos that could not be read, each once."""
        for path, reason in entries:
            if path not in self.skipped:
                self.skipped.add(path)
                self.say(f"skipped {path}: {reason}")
                name = SKIPPED if self.accelerator.num_processes == 1 else f"{self.accelerator.process_index}_{SKIPPED}"
                self.append(name, {"path": path, "reason": reason})

    def append(self, name: str, entry: Mapping[str, Any]) -> None:
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def say(self, text: str) -> None:
        """Print above the bar."""
        if self.accelerator.is_main_process:
            tqdm.write(text)

    def close(self) -> None:
        self.bar.close()


def shortened(value: float) -> float:
    """With nine significant digits, which tell every float32 from its neighbours."""
    return float(f"{value:.9g}")


def peak_memory() -> float:
    """Peak memory of this process's GPU, in GB of 10^9 bytes."""
    return torch.cuda.max_memory_allocated() / 1e9
