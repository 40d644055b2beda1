"""VOSR on pixels, tiny: flow matching from the paper's initialisation, then a one-step student of it.

Network: VOSR's, 160 wide with 2 blocks, on 2 x 2 pixels folded into channels, without vision features; crops of 32
pixels of scikit-image's photos, real-world degradation x4 with the numbers of VOSR. Losses, weak pairs, noised
conditions, EMA and AdamW are the paper's; the learning rate is 1e-3 and the EMA's decay 0.99, because the run is short.

Measured on crops of six photos that no run trains on, degraded alike, from the same noise, with the average of the
weights: the velocity's mean squared error at eight times, given each crop's own condition and that of another crop, and
PSNR after one step and after ten, beside that of the input.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training_photos import fixed_crops, held_out_photos, psnr

TIMES = 8
MODEL = {"preset": "nano", "dim": 160, "depth": 2, "num_heads": 5, "resolution": 32}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=1500, help="of flow matching")
    parser.add_argument("--distillation", type=int, default=500, help="steps of each student")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crops", type=int, default=4, help="of each held-out photo")


def settings(options: argparse.Namespace, out: Path, **changes: Any) -> dict[str, Any]:
    steps = changes.get("steps", options.steps)
    return {
        "out": out,
        "seed": options.seed,
        "steps": steps,
        "batch": options.batch,
        "precision": "fp32",
        "workers": 0,
        "threads": options.threads,
        "ema": 0.99,
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"warmup": 20, "cooldown": steps // 3},
        "data": {"sources": [{"builtin": True}], "crop": 32, "resize": {"chance": 0.7, "factor": [0.3, 1.0]}},
        "log": {"every": 100, "trackers": []},
        "checkpoints": {"every": 10 * steps},
        **changes,
    }


class HeldOut:
    """Crops of photos, degraded, with fixed noise."""

    def __init__(self, method: Any, options: argparse.Namespace):
        from realisr.training.engine.draws import Draws

        photos = held_out_photos(160)
        hq = torch.cat([fixed_crops(photo, options.crops, 32) for photo in photos.values()])
        draws = Draws(options.seed, 2**42)
        self.hq = hq
        self.lq = torch.cat([method.degradations(crop[None], draws) for crop in hq])
        self.noise = draws.normal(*self.latents(method, self.hq).shape)

    @staticmethod
    def latents(method: Any, images: Tensor) -> Tensor:
        return method.latents.latent(method.latents.posterior(images * 2 - 1))

    @torch.no_grad()
    def velocity_error(self, method: Any, shuffled: bool) -> float:
        """Mean over times of the squared error of the velocity, which for a student is that at r = t."""
        hq, lq, errors = self.latents(method, self.hq), self.latents(method, self.lq), []
        given = lq.roll(len(lq) // 2, dims=0) if shuffled else lq
        for t in torch.linspace(1 / TIMES, 1, TIMES):
            x, times = (1 - t) * hq + t * self.noise, t.expand(len(hq))
            velocity = method.dit(torch.cat([given, x], dim=1), times, times)
            errors.append((velocity - (self.noise - hq)).square().mean())
        return torch.stack(errors).mean().item()

    @torch.no_grad()
    def restored_psnr(self, method: Any, steps: int) -> float:
        from realisr.training.vosr.sampling import restore_latent

        lq = self.latents(method, self.lq)
        latent = restore_latent(lambda x, t, r, z: method.dit(x, t, r, z), lq, None, self.noise, steps, 1.0, 0.15)
        return psnr(method.latents.decode(latent) / 2 + 0.5, self.hq).mean().item()

    def row(self, name: str, method: Any) -> str:
        own, other = self.velocity_error(method, False), self.velocity_error(method, True)
        one, ten = self.restored_psnr(method, 1), self.restored_psnr(method, 10)
        return f"| {name} | {own:.3f} | {other:.3f} | {one:.2f} | {ten:.2f} |"


def train(config: dict[str, Any]) -> tuple[Any, Any]:
    from realisr.training.engine.engine import Engine
    from realisr.training.vosr.config import VOSRRunConfig
    from realisr.training.vosr.method import VOSRMethod

    engine = Engine(VOSRMethod(VOSRRunConfig.model_validate(config)))
    return engine, engine.method


def run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        flow = Path(folder) / "flow"
        engine, method = train(settings(options, flow, model=MODEL))
        held_out = HeldOut(method, options)
        lq = psnr(held_out.lq, held_out.hq).mean().item()
        print(f"The input has {lq:.2f} dB, {len(held_out.hq)} crops of 32 pixels; batch {options.batch}.\n")
        print("| Network | Velocity error | with another crop's condition | PSNR, 1 step | PSNR, 10 steps |")
        print("| --- | --- | --- | --- | --- |")
        print(held_out.row("untrained", method))
        engine.run()
        with engine.average.in_place():
            print(held_out.row(f"flow matching, {options.steps} steps", method), flush=True)
        for kind in ("rcgm", "shortcut"):
            distillation = {"teacher": flow, "method": kind, "guidance": 1.0}
            changes = {"mode": "distill", "distillation": distillation, "steps": options.distillation}
            engine, student = train(settings(options, Path(folder) / kind, **changes))
            engine.run()
            with engine.average.in_place():
                print(held_out.row(f"student, {kind}, {options.distillation} steps", student), flush=True)
