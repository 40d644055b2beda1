"""A small method for tests of the training engine: a convolution that takes noise off made pictures, and its critic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from realisr.training.engine.config import RunConfig
from realisr.training.engine.draws import Draws
from realisr.training.engine.files import write_atomically
from realisr.training.engine.method import Batch, Method

SIDE = 16


class DenoiserConfig(RunConfig):
    hidden: int = 4
    critic: bool = False
    """A second turn with an optimizer of its own."""
    critic_from: int = 0
    """The first step with it."""
    dropout: float = 0.0
    fail_at: int | None = None
    """A sample that cannot be read and is noted as skipped."""
    explode_at: int | None = None
    """A micro-batch whose loss is no number."""


class Pictures:
    """Flat colours with a bright square, by number."""

    def __init__(self, seed: int, fail_at: int | None):
        self.seed, self.fail_at = seed, fail_at

    def __len__(self) -> int:
        return 64

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        rng = np.random.default_rng((self.seed, number))
        image = np.tile(rng.random((3, 1, 1), dtype=np.float32), (1, SIDE, SIDE))
        top, left = rng.integers(SIDE // 2, size=2)
        image[:, top : top + 8, left : left + 8] = 1 - image[:, top : top + 8, left : left + 8]
        skipped = [("broken.jpg", "cut short")] if number == self.fail_at else []
        return {"hq": torch.from_numpy(image), "number": number, "skipped": skipped}


class Networks(nn.Module):
    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.explode_at = config.explode_at
        generator = torch.Generator().manual_seed(0)
        self.denoiser = nn.Sequential(
            nn.Conv2d(3, config.hidden, 3, padding=1),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Conv2d(config.hidden, 3, 3, padding=1),
        )
        self.blocks = nn.ModuleList([nn.Linear(3, 3)])
        self.critic = nn.Conv2d(3, 1, 3) if config.critic else None
        self.frozen = nn.Conv2d(3, 3, 1).requires_grad_(False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)

    def restore(self, lq: Tensor) -> Tensor:
        mixed = self.blocks[0](lq.movedim(1, -1)).movedim(-1, 1)
        return lq + self.denoiser(lq) + mixed

    def forward(self, turn: str, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        noise = draws.normal(*batch["lq"].shape) * 0.01
        restored = self.restore(batch["lq"] + noise) - noise
        if turn == "critic":
            assert self.critic is not None
            return {"loss": (1 - self.critic(batch["hq"])).relu().mean() + (1 + self.critic(restored)).relu().mean()}
        loss = (restored - batch["hq"]).square().mean()
        if self.critic is not None:
            loss = loss - 0.01 * self.critic(restored).mean()
        if self.explode_at is not None and int(batch["number"].min()) >= self.explode_at:
            loss = loss * float("nan")
        return {"loss": loss, "error": (restored - batch["hq"]).abs().mean().detach()}


class Denoiser(Method[DenoiserConfig]):
    config_type: ClassVar = DenoiserConfig

    def build(self, device: torch.device) -> None:
        with device if device.type == "meta" else torch.device("cpu"):
            self.network = Networks(self.config)

    def turns(self, step: int) -> Sequence[str]:
        if self.config.critic and step >= self.config.critic_from:
            return ("train", "critic")
        return ("train",)

    def all_turns(self) -> Sequence[str]:
        return ("train", "critic") if self.config.critic else ("train",)

    def parameters(self, turn: str) -> Iterator[tuple[str, nn.Parameter]]:
        named = super().parameters(turn)
        return ((name, value) for name, value in named if name.startswith("critic.") == (turn == "critic"))

    def samples(self) -> Pictures:
        return Pictures(self.config.seed, self.config.fail_at)

    def pictures(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        hq = batch["hq"].to(draws.device)
        return {"hq": hq, "lq": hq + 0.2 * draws.normal(*hq.shape)}

    def prepare(self, batch: Batch, draws: Draws) -> Batch:
        return {**self.pictures(batch, draws), "number": batch["number"]}

    def example_batch(self) -> Batch:
        image = torch.zeros(self.config.batch, 3, SIDE, SIDE)
        return {"hq": image, "lq": image.clone()}

    def validation(self) -> Batch | None:
        hq = torch.stack([self.samples()[number]["hq"] for number in (1000, 1001)])
        return {"hq": hq, "lq": hq + 0.2 * Draws(0, 0).normal(*hq.shape)}

    def restore(self, batch: Batch, draws: Draws) -> Tensor:
        return self.network.restore(batch["lq"].to(draws.device))

    def export(self, folder: Path, tensors: Mapping[str, Tensor], steps: int) -> list[Path]:
        chosen = {name: value for name, value in tensors.items() if not name.startswith("critic.")}
        return [write_atomically(folder / "denoiser.safetensors", lambda path: save_file(chosen, path))]
