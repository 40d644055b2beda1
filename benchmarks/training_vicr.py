"""VICR on a tiny FLUX.1 Fill: pre-trained on inpainting of photos, then LoRA and bridge on diptychs.

Network: FLUX.1 Fill's architecture (diffusers' FluxTransformer2DModel, 96 x 4 input features) at a width of 128 with 2
two-stream and 4 one-stream blocks. Latents: a linear autoencoder, the 16 principal components of 8 x 8 pixels of the
training photos; what it loses is printed as the ceiling. In place of CLIP, of which no weights are at hand: 768 fixed
random features of the LQ panel's 8 x 8 thumbnail. Every prompt is the same. Panels of 64 x 64 pixels.

Pre-training: all weights learn to fill random rectangles and halves of clean canvases that are 128 x 64 crops of
photos. VICR: the pack's own network, loss, times and Prodigy, rank 32, on pairs degraded x4 by the real-world
degradation. Measured: PSNR of the right panel on crops of six photos that neither stage saw, from the same noise.

The rows: the pre-trained network as it is on diptychs (zero-shot), trained VICR, the same with the bridge taken out and
with every crop given another one's embedding, and VICR trained without a bridge.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from training_photos import fixed_crops, held_out_photos, psnr, random_crops, training_photos

CELL, CHANNELS, WIDTH, BLOCKS = 8, 16, 128, (2, 4)
TEXT_TOKENS, TEXT_WIDTH, POOLED, EMBEDDING = 4, 32, 768, 768
SHORT_SIDE, GUIDANCE, SCALE = 160, 30.0, 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--panel", type=int, default=64, help="pixels")
    parser.add_argument("--pretraining", type=int, default=3000, help="steps on inpainting")
    parser.add_argument("--canvases", type=int, default=16, help="of a step of pre-training")
    parser.add_argument("--steps", type=int, default=500, help="of VICR")
    parser.add_argument("--pairs", type=int, default=8, help="of a step of VICR")
    parser.add_argument("--sampling", type=int, default=10, help="Euler steps of a restoration")
    parser.add_argument("--crops", type=int, default=8, help="of each held-out photo")
    parser.add_argument("--base", type=Path, help="keep the pre-trained network here, and start from it if it is there")


class PatchAutoencoder:
    """Principal components of patches of CELL x CELL pixels: linear, so that it can be said what it loses."""

    def __init__(self, photos: list[Tensor], rng: np.random.Generator):
        patches = self.cut(random_crops(photos, 2000, 4 * CELL, rng) * 2 - 1).transpose(1, -1).flatten(0, -2)
        variances, directions = torch.linalg.eigh(torch.cov(patches.double().T))
        self.directions = directions[:, -CHANNELS:].float()
        # Square roots of the deviations: fine components count less than coarse ones, but are not lost in the noise.
        self.scale = variances[-CHANNELS:].float() ** 0.25 / 1.0
        self.mean = patches.mean(dim=0)

    @staticmethod
    def cut(images: Tensor) -> Tensor:
        return rearrange(images, "b c (h p) (w q) -> b (c p q) h w", p=CELL, q=CELL)

    def encode(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` in -1..1 -> `[B, 16, H / 8, W / 8]`."""
        patches = self.cut(images).movedim(1, -1) - self.mean
        return (patches @ self.directions / self.scale).movedim(-1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        patches = (latents.movedim(1, -1) * self.scale) @ self.directions.T + self.mean
        return rearrange(patches, "b h w (c p q) -> b c (h p) (w q)", c=3, p=CELL, q=CELL)


class Thumbnails:
    """The stand-in for CLIP: random features of an image's 8 x 8 thumbnail, the same for every use."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.weight = torch.randn(3 * 64, EMBEDDING, generator=generator) * 0.3

    def encode(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` in [0, 1] -> `[B, 768]`."""
        small = F.interpolate(images, size=(8, 8), mode="bicubic", antialias=True)
        return torch.tanh((2 * small.flatten(1) - 1) @ self.weight)


def tiny_flux_fill(seed: int) -> Any:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(seed)
    transformer: Any = FluxTransformer2DModel(
        in_channels=4 * (2 * CHANNELS + CELL**2),
        out_channels=4 * CHANNELS,
        num_layers=BLOCKS[0],
        num_single_layers=BLOCKS[1],
        attention_head_dim=128,
        num_attention_heads=WIDTH // 128,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED,
        guidance_embeds=True,
    )
    # As DiTs start: blocks and output contribute nothing at first.
    for name, parameter in transformer.named_parameters():
        if name.endswith(("norm1.linear.weight", "norm1_context.linear.weight", "norm.linear.weight")):
            torch.nn.init.zeros_(parameter)
        if name in ("proj_out.weight", "proj_out.bias", "norm_out.linear.weight"):
            torch.nn.init.zeros_(parameter)
    return transformer


class Experiment:
    """Data, latents and conditions of all stages."""

    def __init__(self, options: argparse.Namespace):
        from realisr.models.degradation.real_world import RealWorldDegradation

        self.options = options
        self.photos = training_photos(SHORT_SIDE)
        self.autoencoder = PatchAutoencoder(self.photos, np.random.default_rng(1))
        self.vision = Thumbnails()
        self.degrade = RealWorldDegradation(SCALE)
        self.panel = options.panel

    def draws(self, stage: int, number: int) -> Any:
        from realisr.training.engine.draws import Draws

        return Draws((self.options.seed, stage), number)

    def prompt(self, count: int) -> dict[str, Tensor]:
        return {"text": torch.zeros(count, TEXT_TOKENS, TEXT_WIDTH), "pooled": torch.zeros(count, POOLED)}

    def lq(self, hq: Tensor, generator: torch.Generator) -> Tensor:
        """Degraded, with one blur and resize for all and noise and JPEG of their own, and enlarged again."""
        from realisr.models.vicr.diptych import bicubic

        low = self.degrade(hq, generator)
        return bicubic(low.movedim(1, -1), self.panel, self.panel).movedim(-1, 1)

    def diptych(self, hq: Tensor, lq: Tensor, embeds: Tensor | None = None) -> dict[str, Tensor]:
        """What a prepared batch holds, but noise and time."""
        encode = self.autoencoder.encode
        return {
            "clean": encode(torch.cat([lq, hq], dim=-1) * 2 - 1),
            "masked": encode(torch.cat([lq * 2 - 1, torch.zeros_like(hq)], dim=-1)),
            "embeds": self.vision.encode(lq) if embeds is None else embeds,
            **self.prompt(len(hq)),
        }

    def times(self, shape: torch.Size, draws: Any) -> Tensor:
        from realisr.training.flux.latent import shifted

        return shifted(draws.uniform(shape[0]), shape[-1] * shape[-2] // 4)

    # --- pre-training ----------------------------------------------------------------------------------------------

    def holes(self, count: int, draws: Any) -> Tensor:
        """Masks `[B, H, W]` in pixels: rectangles, or all but one side."""
        height, width = self.panel, 2 * self.panel
        masks = torch.zeros(count, height, width)
        for mask in masks:
            kind = draws.choice(3)
            if kind < 2:
                half = slice(0, width // 2) if kind else slice(width // 2, width)
                mask[:, half] = 1
                continue
            for _ in range(1 + draws.choice(3)):
                rows, columns = (torch.sort(draws.uniform(2) * side).values.int() for side in (height, width))
                mask[rows[0] : rows[1] + 8, columns[0] : columns[1] + 8] = 1
        return masks

    def pretrain(self) -> Any:
        """The tiny FLUX Fill, all weights trained on inpainting."""
        from realisr.training.flow import noisy
        from realisr.training.flux.latent import pack, pack_mask, token_ids, unpack

        base = self.options.base
        transformer = tiny_flux_fill(self.options.seed)
        if base is not None and base.is_file():
            transformer.load_state_dict(torch.load(base, weights_only=True))
            return transformer
        optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
        steps, batch = self.options.pretraining, self.options.canvases
        averaged = {name: value.detach().clone() for name, value in transformer.named_parameters()}
        recent: list[float] = []
        for step in range(steps):
            draws = self.draws(1, step)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min((step + 1) / 100, 1) * 0.5 * (1 + np.cos(np.pi * step / steps))
            canvas = torch.cat([random_crops(self.photos, 1, 2 * self.panel, draws.numpy) for _ in range(batch)])
            canvas = canvas[:, :, : self.panel] * 2 - 1
            mask = self.holes(batch, draws)
            clean = self.autoencoder.encode(canvas)
            masked = self.autoencoder.encode(canvas * (1 - mask[:, None]))
            time, noise = self.times(clean.shape, draws), draws.normal(*clean.shape)
            height, width = clean.shape[-2:]
            tokens = [pack(noisy(clean, noise, time)), pack(masked), pack(pack_mask(mask, CELL))]
            prompt = self.prompt(batch)
            out = transformer(
                hidden_states=torch.cat(tokens, dim=-1),
                encoder_hidden_states=prompt["text"],
                pooled_projections=prompt["pooled"],
                timestep=time,
                guidance=torch.full((batch,), GUIDANCE),
                img_ids=token_ids(height, width, "cpu"),
                txt_ids=torch.zeros(TEXT_TOKENS, 3),
                return_dict=False,
            )[0]
            loss = (unpack(out, height, width) - (noise - clean)).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for name, value in transformer.named_parameters():
                    averaged[name].lerp_(value, 1 - min(0.995, (1 + step) / (10 + step)))
            recent = [*recent[-199:], loss.item()]
            if (step + 1) % 500 == 0:
                print(f"pre-training {step + 1}: loss {np.mean(recent):.4f}", flush=True)
        transformer.load_state_dict(averaged)
        if base is not None:
            torch.save(transformer.state_dict(), base)
        return transformer

    # --- VICR ------------------------------------------------------------------------------------------------------

    def network(self, base: dict[str, Tensor], bridge: bool) -> Any:
        from realisr.models.vicr.bridge import BridgeConfig
        from realisr.training.vicr.network import build_network

        transformer = tiny_flux_fill(0)
        transformer.load_state_dict(base)
        config = BridgeConfig(embedding=EMBEDDING, hidden=WIDTH, width=WIDTH) if bridge else None
        return build_network(transformer, 32, config, GUIDANCE, self.options.seed)

    def train(self, network: Any, name: str) -> Any:
        """LoRA and bridge as the trainer trains them."""
        from realisr.training.engine.config import OptimizerSettings, ScheduleSettings
        from realisr.training.engine.optimizers import TurnOptimizer
        from realisr.training.vicr.network import trained

        parameters = trained(network)
        settings = OptimizerSettings(name="prodigy", learning_rate=1.0, weight_decay=0.01)
        groups = [{"params": list(parameters.items()), "rate": 1.0}]
        optimizer = TurnOptimizer(settings, ScheduleSettings(), groups)
        print(f"{name}: {sum(value.numel() for value in parameters.values()):,} trained parameters")
        recent: list[float] = []
        started = time.monotonic()
        for step in range(self.options.steps):
            draws = self.draws(2, step)
            hq = random_crops(self.photos, self.options.pairs, self.panel, draws.numpy)
            batch = self.diptych(hq, self.lq(hq, draws.generator))
            batch["noise"] = draws.normal(*batch["clean"].shape)
            batch["time"] = self.times(batch["clean"].shape, draws)
            loss = network("train", batch, draws)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(optimizer.parameters, 1.0)
            optimizer.step(step, self.options.steps)
            recent = [*recent[-99:], loss.item()]
            if (step + 1) % 50 == 0:
                spent = time.monotonic() - started
                print(f"{name} {step + 1}: loss {np.mean(recent):.4f}, {spent:.0f} s", flush=True)
        return network.eval()

    # --- measuring -------------------------------------------------------------------------------------------------

    def held_out(self) -> dict[str, dict[str, Tensor]]:
        """Crops of the held-out photos: hq and lq, degraded once."""
        pairs = {}
        for index, (name, photo) in enumerate(held_out_photos(SHORT_SIDE).items()):
            hq = fixed_crops(photo, self.options.crops, self.panel)
            pairs[name] = {"hq": hq, "lq": self.lq(hq, self.draws(3, index).generator)}
        return pairs

    def restore(self, network: Any, hq: Tensor, lq: Tensor, seed: int, embeds: Tensor | None = None) -> Tensor:
        from realisr.training.vicr.network import VELOCITY
        from realisr.training.vicr.restore import sample

        batch = self.diptych(hq, lq, embeds)
        noise = self.draws(4, seed).normal(*batch["clean"].shape)

        def velocity(x: Tensor, at: Tensor) -> Tensor:
            return network(VELOCITY, {**batch, "x": x, "time": at}, None)["velocity"]

        latent = sample(velocity, noise, self.options.sampling)
        return self.autoencoder.decode(latent.chunk(2, dim=-1)[1]) / 2 + 0.5

    def measure(self, network: Any, pairs: dict[str, dict[str, Tensor]], embeds: str = "own") -> dict[str, float]:
        """Mean PSNR of each photo's crops. embeds: own, or shuffled among all crops."""
        every = torch.cat([self.vision.encode(pair["lq"]) for pair in pairs.values()])
        # Half way round: crops of other photos.
        every = every.roll(len(every) // 2, 0) if embeds == "shuffled" else every
        results = {}
        for index, (name, pair) in enumerate(pairs.items()):
            own = every[index * self.options.crops :][: self.options.crops]
            results[name] = psnr(self.restore(network, **pair, seed=index, embeds=own), pair["hq"]).mean().item()
        return results


def run(options: argparse.Namespace) -> None:
    experiment = Experiment(options)
    started = time.monotonic()
    base = experiment.pretrain().state_dict()
    print(f"pre-trained in {time.monotonic() - started:.0f} s")
    pairs = experiment.held_out()
    ceiling = {
        name: psnr(
            experiment.autoencoder.decode(experiment.autoencoder.encode(pair["hq"] * 2 - 1)) / 2 + 0.5, pair["hq"]
        )
        for name, pair in pairs.items()
    }
    rows = {
        "autoencoder alone (ceiling)": {name: values.mean().item() for name, values in ceiling.items()},
        "LQ panel (bicubic)": {name: psnr(pair["lq"], pair["hq"]).mean().item() for name, pair in pairs.items()},
        "zero-shot diptych": experiment.measure(experiment.network(base, bridge=True).eval(), pairs),
    }
    network = experiment.train(experiment.network(base, bridge=True), "VICR")
    rows["VICR"] = experiment.measure(network, pairs)
    rows["VICR, embeddings shuffled"] = experiment.measure(network, pairs, "shuffled")
    network.bridge = None
    rows["VICR, bridge taken out"] = experiment.measure(network, pairs)
    network = experiment.train(experiment.network(base, bridge=False), "VICR without a bridge")
    rows["VICR trained without a bridge"] = experiment.measure(network, pairs)
    print(table(rows))


def table(rows: dict[str, dict[str, float]]) -> str:
    names = list(next(iter(rows.values())))
    lines = [f"| right panel, PSNR in dB | {' | '.join(names)} | mean |", "| --- |" + " --- |" * (len(names) + 1)]
    for row, values in rows.items():
        mean = sum(values.values()) / len(values)
        lines.append(f"| {row} | {' | '.join(f'{values[name]:.2f}' for name in names)} | **{mean:.2f}** |")
    return "\n".join(lines)
