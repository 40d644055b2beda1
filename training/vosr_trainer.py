"""The VOSR training loop: flow matching or one-step distillation, with EMA, exact resume, logging and validation."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..models.attention import scaled_dot_product
from ..models.vosr.dit import VOSRDiT
from .vosr_losses import Conditions, ConditionScheme, Distillation, balanced_weights, flow_matching_loss, step_times
from .vosr_weights import save_folder_weights, write_atomically


class LatentSpace(Protocol):
    """Where the network works. `encode` maps images `[B, 3, H, W]` in [-1, 1] to normalised latents, `decode` back."""

    @property
    def latent_channels(self) -> int: ...

    def encode(self, image: Tensor) -> Tensor: ...

    def decode(self, latent: Tensor) -> Tensor: ...

    def features(self, image: Tensor) -> Tensor | None:
        """Vision features `[B, M, E]` of the LQ image, or None for a network without them."""


@dataclass(frozen=True)
class TrainOptions:
    """One run. Batch size and data belong to the data loader."""

    steps: int
    """Optimizer steps in all."""
    mode: str = "flow"
    """`flow` or `distill`."""
    optimizer: str = "adamw"
    """`adamw`, or `muon` for the matrices of the blocks with AdamW for everything else."""
    learning_rate: float = 5e-5
    edge_rate: float = 1.0
    """Factor of the learning rate for the embedding and the final layer."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    cooldown: int = 0
    """Steps over which it falls to 0 at the end, along a half cosine; 0 keeps it constant, as the paper does."""
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    ema_decay: float = 0.9999
    weak_ratio: float = 0.1
    """Part of the samples that see the weak condition."""
    weak_strengths: tuple[float, float] = (0.05, 0.25)
    """Range that the weak condition's factor is drawn from, once a step."""
    condition_strength: tuple[float, float] = (5.0, 1.0)
    """Mean and standard deviation of logit(amplitude) that the full condition keeps."""
    noise_only_chance: float = 0.0
    """Part of the flow-matching samples taken at t = 1, where one Euler step gives the posterior mean (ours; the
    paper: 0)."""
    logit_normal: tuple[float, float] | None = None
    """Mean and standard deviation of logit(t), or None for uniform t, as in the paper."""
    balance: float | None = None
    """Scale of `balanced_weights` of flow matching, or None for the paper's plain mean."""
    distillation: Distillation = field(default_factory=Distillation)
    precision: str = "fp32"
    """`fp32`, or `bf16` for autocast."""
    compile: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0
    log_every: int = 20
    validate_every: int = 500
    save_every: int = 500

    def learning_rate_at(self, step: int) -> float:
        """Rate of step 0, 1, ...: linear warm-up, constant, cosine fall."""
        rate = self.learning_rate
        if step < self.warmup:
            rate *= (step + 1) / self.warmup
        left = self.steps - step
        if left < self.cooldown:
            rate *= 0.5 - 0.5 * math.cos(math.pi * left / self.cooldown)
        return rate


class CheckpointedDiT(VOSRDiT):
    """Recomputes block activations in the backward pass: less memory, about a third more time."""

    def forward(self, x, t, r=None, z=None, context=None, attention=scaled_dot_product, run_block=None):
        def recompute(index, block, *inputs):
            return checkpoint(block, *inputs, use_reentrant=False)

        return super().forward(x, t, r, z, context, attention, run_block or recompute)


class Draws:
    """Random numbers of one step: a function of (seed, step), made on the CPU so that every device trains alike."""

    def __init__(self, seed: int, step: int, device: torch.device):
        state = int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)
        self.generator = torch.Generator().manual_seed(state)
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.device)


class Trainer:
    """Owns the network, its average, the optimizer and the step count, and everything that has to be resumed."""

    def __init__(
        self,
        options: TrainOptions,
        args: dict[str, Any],
        model: VOSRDiT,
        latents: LatentSpace,
        folder: Path,
        device: torch.device,
        teacher: VOSRDiT | None = None,
    ):
        if options.mode not in ("flow", "distill"):
            raise ValueError(f"training mode is '{options.mode}'; use 'flow' or 'distill'")
        if (options.mode == "distill") != (teacher is not None):
            raise ValueError("mode 'distill' needs a teacher, and mode 'flow' takes none")
        self.options, self.args, self.latents, self.folder, self.device = options, args, latents, folder, device
        self.model = model.to(device).train()
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.teacher = None if teacher is None else teacher.to(device).eval().requires_grad_(False)
        self.network = torch.compile(self.model) if options.compile else self.model
        self.optimizers = make_optimizers(self.model, options)
        self.scheme = ConditionScheme(options.weak_ratio, *options.condition_strength)
        self.step = 0

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def loss(self, hq_image: Tensor, lq_image: Tensor) -> Tensor:
        """Loss of this step's batch of images `[B, 3, H, W]` in [-1, 1]."""
        draws = Draws(self.options.seed, self.step, self.device)
        with torch.no_grad():
            hq, lq = self.latents.encode(hq_image), self.latents.encode(lq_image)
            z = self.latents.features(lq_image)
        batch = hq.shape[0]
        condition = self.conditions(draws, lq, z)
        eps = draws.normal(*hq.shape)
        with self.autocast():
            if self.teacher is None:
                t, scale = self.times(draws, batch), self.options.balance
                weights = None if scale is None else balanced_weights(hq, condition.lq, t, scale)
                return flow_matching_loss(self.network, hq, condition, t, eps, weights)
            t, r = step_times(draws.uniform(batch, 2), draws.uniform(batch))
            return self.options.distillation.losses(self.network, self.teacher, hq, condition, t, r, eps)[0]

    def conditions(self, draws: Draws, lq: Tensor, z: Tensor | None) -> Conditions:
        low, high = self.options.weak_strengths
        weak_strength = low + (high - low) * draws.uniform(1)
        batch = lq.shape[0]
        return self.scheme.conditions(
            lq, z, weak_strength, draws.normal(batch), draws.normal(*lq.shape), draws.uniform(batch)
        )

    def times(self, draws: Draws, batch: int) -> Tensor:
        if self.options.logit_normal is None:
            t = draws.uniform(batch)
        else:
            mean, std = self.options.logit_normal
            t = torch.sigmoid(mean + std * draws.normal(batch))
        return torch.where(draws.uniform(batch) < self.options.noise_only_chance, torch.ones_like(t), t)

    def train_step(self, hq_image: Tensor, lq_image: Tensor) -> dict[str, float | Tensor]:
        """One update. Returns what the log takes; the loss stays a tensor so that no step waits for the device."""
        rate = self.options.learning_rate_at(self.step)
        loss = self.loss(hq_image.to(self.device), lq_image.to(self.device))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.gradient_clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            optimizer.step()
            optimizer.zero_grad()
        self.average()
        self.step += 1
        return {"loss": loss.detach(), "grad_norm": norm, "lr": rate}

    @torch.no_grad()
    def average(self) -> None:
        """Move the average towards the weights; its first steps follow faster."""
        decay = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)

    def run(self, batches: Iterable[tuple[Tensor, Tensor]], validation: Validation | None = None) -> None:
        """Train on the batches of steps `self.step`, `self.step + 1`, ... until `options.steps`."""
        options = self.options
        started, losses = time.monotonic(), []
        for hq_image, lq_image in limited(batches, options.steps - self.step):
            entry = self.train_step(hq_image, lq_image)
            losses.append(entry["loss"])
            if self.step % options.log_every == 0:
                mean = torch.stack(losses).mean().item()
                elapsed = (time.monotonic() - started) / len(losses)
                self.log({**entry, "loss": mean, "grad_norm": float(entry["grad_norm"]), "seconds_per_step": elapsed})
                started, losses = time.monotonic(), []
            if validation is not None and self.step % options.validate_every == 0:
                self.log(validation.measure(self.ema, self.latents, self.device))
            if self.step % options.save_every == 0 or self.step == options.steps:
                self.save()

    def log(self, entry: dict[str, Any]) -> None:
        """Append one JSON line to log.jsonl and print it."""
        rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in entry.items()}
        line = json.dumps({"step": self.step, **rounded})
        print(line, flush=True)
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(line + "\n")

    def save(self) -> None:
        """Write the folder other tools load (args.json, checkpoints/ema_model.safetensors) and the state to resume."""
        save_folder_weights(self.folder, self.args, self.ema)
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_atomically(self.state_file, lambda path: torch.save(state, path))

    @property
    def state_file(self) -> Path:
        return self.folder / "checkpoints" / "state.pt"

    def resume(self) -> None:
        """Continue from the folder's last save. Raises FileNotFoundError when there is none."""
        if not self.state_file.exists():
            raise FileNotFoundError(f"nothing to resume: {self.state_file} does not exist; leave --resume out")
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]


def limited(batches: Iterable[Any], count: int) -> Iterator[Any]:
    """The first `count` batches. Raises RuntimeError when the data ends before."""
    source = iter(batches)
    for done in range(count):
        try:
            yield next(source)
        except StopIteration:
            raise RuntimeError(f"the training data ended after {done} of {count} batches") from None


def make_optimizers(model: VOSRDiT, options: TrainOptions) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest.

    Muon's update is scaled to the size AdamW's has, so both take the same learning rate. Raises ValueError for another
    optimizer, and for Muon where torch is older than 2.9.
    """
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    matrices = {}
    if options.optimizer == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"optimizer 'muon' needs torch 2.9 or newer, this is {torch.__version__}; use 'adamw'")
        blocks = {name: value for name, value in parameters.items() if name.startswith("blocks.")}
        matrices = {name: value for name, value in blocks.items() if name.endswith(".weight") and value.ndim == 2}
    elif options.optimizer != "adamw":
        raise ValueError(f"optimizer is '{options.optimizer}'; use 'adamw' or 'muon'")
    edges = ("x_embedder.", "final_layer.")
    edge = [value for name, value in parameters.items() if name.startswith(edges)]
    inner = [value for name, value in parameters.items() if name not in matrices and not name.startswith(edges)]
    groups = [{"params": edge, "rate": options.edge_rate}, {"params": inner, "rate": 1.0}]
    rate, decay = options.learning_rate, options.weight_decay
    adamw = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=decay, fused=True)
    if not matrices:
        return [adamw]
    group = {"params": list(matrices.values()), "rate": 1.0}
    return [adamw, torch.optim.Muon([group], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")]


@dataclass(frozen=True)
class Validation:
    """Fixed pairs, restored in one step from fixed noise."""

    sets: dict[str, tuple[Tensor, Tensor]]
    """HQ and LQ images by name, each `[N, 3, s, s]` in [-1, 1]."""
    batch: int = 16

    @torch.no_grad()
    def measure(self, model: VOSRDiT, latents: LatentSpace, device: torch.device) -> dict[str, float]:
        """Mean PSNR in dB of each set and its gain over the LQ image."""
        results = {}
        for name, (hq, lq) in self.sets.items():
            restored = torch.cat([self.restore(model, latents, part.to(device)).cpu() for part in lq.split(self.batch)])
            results[f"{name}_psnr"] = psnr(restored, hq)
            results[f"{name}_gain"] = results[f"{name}_psnr"] - psnr(lq, hq)
        return results

    def restore(self, model: VOSRDiT, latents: LatentSpace, lq_image: Tensor) -> Tensor:
        lq = latents.encode(lq_image)
        eps = torch.randn(lq.shape, generator=torch.Generator().manual_seed(0)).to(lq)
        t = torch.ones(lq.shape[0], device=lq.device)
        z = latents.features(lq_image)
        velocity = model(torch.cat([lq, eps], dim=1), t, torch.zeros_like(t), z)
        return latents.decode(eps - velocity).clamp(-1, 1)


def psnr(image: Tensor, reference: Tensor) -> float:
    """Mean over images of the PSNR in dB; values in [-1, 1]."""
    error = ((image - reference) / 2).square().flatten(1).mean(dim=1)
    return (-10 * error.clamp(min=1e-10).log10()).mean().item()


def cpu_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
