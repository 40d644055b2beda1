"""DreamSR on a tiny FLUX.1: pre-trained on photos with prompts, then the MM-ControlNet, and then the acceleration LoRA.

Network: FLUX.1-dev's architecture (diffusers' FluxTransformer2DModel) at a width of 128 with 2 two-stream and 4
one-stream blocks; the pack's own MM-ControlNet with one block, half as many. Latents: the linear autoencoder of the
VICR experiment. Tiles of 64 x 64 pixels.

Prompts: six words of a picture's colours (its brightness and how colourful it is, the commonest colour and the next,
those of its upper and lower half), found by counting the clean picture's pixels; each word is a fixed random
embedding. The global prompt has the words of the whole photo, the patch prompt those of the tile. The LQ tile is
degraded x4 by the real-world degradation and grey, like an old photo's: which colours there were, only a prompt can
tell. That makes prompts matter more than they do in practice, and a description by counting is better than a VLM's of
an LQ tile: the experiment shows that the network learns to use patch prompts, not how much good they do to photographs.

Pre-training: all weights learn tiles from their own words (text to image). MM-ControlNet: the pack's own network and
loss (eq. 4 and 5; no LPIPS, whose weights are not at hand), once with patch prompts, once with the global prompt for
both networks. Measured: the velocity's mean squared error on tiles of six photos that neither stage saw, at five fixed
times with fixed noise, over all tiles and over those whose commonest colour is not the photo's.

Acceleration LoRA: rank 16 on the same network, alternating with its discriminator, eq. 7 without LPIPS. Measured: PSNR
of the removal forward.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from training_photos import fixed_crops, held_out_photos, psnr, training_photos
from training_vicr import CHANNELS, PatchAutoencoder

WIDTH, BLOCKS, CONTROL_LAYERS = 128, (2, 4), 1
TEXT_WIDTH, POOLED, SHORT_SIDE, SCALE = 32, 64, 160, 4
TIMES = (0.9, 0.7, 0.5, 0.3, 0.1)
HUES, LEVELS = 12, 4
GREY = HUES
"""Word of pixels without a colour, after those of the hues."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tile", type=int, default=64, help="pixels")
    parser.add_argument("--pretraining", type=int, default=1500, help="steps of text to image")
    parser.add_argument("--steps", type=int, default=400, help="steps of the control")
    parser.add_argument("--lora-steps", type=int, default=150, help="steps of the LoRA and its discriminator")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tiles", type=int, default=16, help="of each held-out photo")
    parser.add_argument("--base", type=Path, help="keep the pre-trained network here, and start from it if it is there")


# --- prompts ---------------------------------------------------------------------------------------------------------


def colour_words(image: Tensor) -> list[int]:
    """Six words of a picture `[3, H, W]` in [0, 1], as numbers within their slots."""
    high, low = image.amax(dim=0), image.amin(dim=0)
    chroma = high - low
    red, green, blue = image
    safe = chroma.clamp(min=1e-6)
    hue = torch.where(high == red, (green - blue) / safe % 6, torch.where(high == green, (blue - red) / safe + 2, 0))
    hue = torch.where((high == blue) & (high != red) & (high != green), (red - green) / safe + 4, hue)
    colour = torch.where(chroma < 0.08, GREY, (hue * HUES / 6).long() % HUES)

    def commonest(part: Tensor) -> list[int]:
        return torch.bincount(part.flatten(), minlength=HUES + 1).argsort(descending=True, stable=True).tolist()

    half = image.shape[1] // 2
    both = commonest(colour)
    brightness, saturation = (min(LEVELS - 1, int(LEVELS * value.mean())) for value in (high, 2 * chroma))
    return [brightness, saturation, both[0], both[1], commonest(colour[:half])[0], commonest(colour[half:])[0]]


SLOTS = (LEVELS, LEVELS, HUES + 1, HUES + 1, HUES + 1, HUES + 1)


class Words:
    """The stand-in for T5 and CLIP: fixed random embeddings of words."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.tokens = [torch.randn(count, TEXT_WIDTH, generator=generator) for count in SLOTS]
        self.pooled = [torch.randn(count, POOLED, generator=generator) for count in SLOTS]

    def encode(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Tokens `[B, 6, 32]` and pooled `[B, 64]`."""
        tokens = [torch.stack([table[word] for table, word in zip(self.tokens, each, strict=True)]) for each in prompts]
        pooled = [torch.stack([table[word] for table, word in zip(self.pooled, each, strict=True)]) for each in prompts]
        return torch.stack(tokens), torch.stack(pooled).sum(dim=1) / len(SLOTS) ** 0.5


class Decoder(nn.Module):
    """The autoencoder's way back, as the network's losses on images call it."""

    def __init__(self, autoencoder: PatchAutoencoder):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents)


def tiny_flux(seed: int) -> Any:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(seed)
    transformer: Any = FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
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
            nn.init.zeros_(parameter)
        if name in ("proj_out.weight", "proj_out.bias", "norm_out.linear.weight"):
            nn.init.zeros_(parameter)
    return transformer


# --- the experiment --------------------------------------------------------------------------------------------------


class Experiment:
    """Data and conditions of all stages."""

    def __init__(self, options: argparse.Namespace):
        from realisr.models.degradation.real_world import RealWorldDegradation

        self.options, self.tile = options, options.tile
        self.photos = training_photos(SHORT_SIDE)
        self.autoencoder = PatchAutoencoder(self.photos, np.random.default_rng(1))
        self.words = Words()
        self.degrade = RealWorldDegradation(SCALE)

    def draws(self, stage: int, number: int) -> Any:
        from realisr.training.engine.draws import Draws

        return Draws((self.options.seed, stage), number)

    def tiles(self, count: int, rng: np.random.Generator) -> tuple[Tensor, list[list[int]], list[list[int]]]:
        """Tiles of photos drawn at random, turned, mirrored, with channels permuted; their words; and their photos'."""
        tiles, local, whole = [], [], []
        for _ in range(count):
            photo = self.photos[rng.integers(len(self.photos))].rot90(int(rng.integers(4)), (1, 2))
            photo = (photo.flip(2) if rng.random() < 0.5 else photo)[torch.from_numpy(rng.permutation(3))]
            top, left = (rng.integers(length - self.tile + 1) for length in photo.shape[1:])
            tiles.append(photo[:, top : top + self.tile, left : left + self.tile])
            local.append(colour_words(tiles[-1]))
            whole.append(colour_words(photo))
        return torch.stack(tiles), local, whole

    def lq(self, hq: Tensor, generator: torch.Generator, together: int = 1) -> Tensor:
        """Degraded `together` at a time, without colours, and enlarged again."""
        from realisr.models.image import upscale

        low = torch.cat([self.degrade(part, generator) for part in hq.split(together)]).mean(dim=1, keepdim=True)
        large = upscale(low.expand(-1, 3, -1, -1).movedim(1, -1), self.tile, self.tile)
        return large.movedim(-1, 1)

    def prepared(self, hq: Tensor, lq: Tensor, whole: list[list[int]], local: list[list[int]]) -> dict[str, Tensor]:
        """As the network takes it."""
        (tokens, pooled), (local_tokens, local_pooled) = self.words.encode(whole), self.words.encode(local)
        low = self.autoencoder.encode(2 * lq - 1)
        return {
            "hq": self.autoencoder.encode(2 * hq - 1),
            "lq": low,
            "condition": low,
            "hq_image": 2 * hq - 1,
            "tokens": tokens,
            "pooled": pooled,
            "local_tokens": local_tokens,
            "local_pooled": local_pooled,
        }

    def network(self, transformer: Any, lora: bool = False) -> Any:
        """The pack's training network around a transformer, with a new control."""
        from realisr.training.dreamsr.control import new_control
        from realisr.training.dreamsr.discriminator import PatchDiscriminator
        from realisr.training.dreamsr.flux import ControlledFlux
        from realisr.training.dreamsr.lora import add_lora
        from realisr.training.dreamsr.network import DreamSRNetwork

        blocks = tuple(index * BLOCKS[0] // CONTROL_LAYERS for index in range(CONTROL_LAYERS))
        transformer.requires_grad_(False)
        control = new_control(transformer, CONTROL_LAYERS, blocks, self.options.seed)
        if lora:
            add_lora(transformer, 16, 16.0, self.options.seed)
        torch.manual_seed(self.options.seed)
        judge = PatchDiscriminator(16) if lora else None
        return DreamSRNetwork(ControlledFlux(transformer, control, blocks), Decoder(self.autoencoder), None, judge)

    def base(self, weights: dict[str, Tensor]) -> Any:
        transformer = tiny_flux(0)
        transformer.load_state_dict(weights)
        return transformer

    def pretrain(self) -> dict[str, Tensor]:
        """Weights of the tiny FLUX, trained on tiles and their words; averaged over the last steps."""
        from realisr.training.dreamsr.losses import velocity_error
        from realisr.training.flow import noisy

        file = self.options.base
        if file is not None and file.is_file():
            return torch.load(file, weights_only=True)
        transformer = tiny_flux(self.options.seed)
        network = self.network(transformer)
        transformer.requires_grad_(True)
        optimizer = torch.optim.AdamW(
            transformer.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        averaged = {name: value.detach().clone() for name, value in transformer.named_parameters()}
        recent: list[float] = []
        for step in range(self.options.pretraining):
            draws = self.draws(1, step)
            for group in optimizer.param_groups:
                done = step / self.options.pretraining
                group["lr"] = 1e-3 * min((step + 1) / 100, 1) * 0.5 * (1 + np.cos(np.pi * done))
            hq, local, _ = self.tiles(self.options.batch, draws.numpy)
            batch = self.prepared(hq, hq, local, local)
            noise, t = draws.normal(*batch["hq"].shape), draws.uniform(len(hq))
            velocity = network.velocity(noisy(batch["hq"], noise, t), t, batch, None)
            loss = velocity_error(velocity, batch["hq"], noise).mean()
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
        if file is not None:
            torch.save(averaged, file)
        return averaged

    def train(self, network: Any, turns: dict[str, list[Any]], steps: int, local_prompts: bool, name: str) -> None:
        """`steps` steps, each with the turns one after another, by the trainer's optimizer.

        turns: (name, parameter) pairs of each.
        """
        from realisr.training.engine.config import OptimizerSettings, ScheduleSettings
        from realisr.training.engine.optimizers import TurnOptimizer

        settings = OptimizerSettings(learning_rate=1e-3, betas=(0.9, 0.99))
        schedule = ScheduleSettings(warmup=20, cooldown=steps)
        optimizers = {}
        for turn, parameters in turns.items():
            optimizers[turn] = TurnOptimizer(settings, schedule, [{"params": parameters, "rate": 1.0}])
        every = [value for optimizer in optimizers.values() for value in optimizer.parameters]
        network.requires_grad_(False)
        recent: list[float] = []
        started = time.monotonic()
        for step in range(steps):
            draws = self.draws(2, step)
            hq, local, whole = self.tiles(self.options.batch, draws.numpy)
            # One draw of blurs and sizes for a batch: sixteen would take ten times as long as the network.
            lq = self.lq(hq, draws.generator, together=len(hq))
            batch = self.prepared(hq, lq, whole, local if local_prompts else whole)
            for turn, optimizer in optimizers.items():
                for value in every:
                    value.requires_grad_(any(value is own for own in optimizer.parameters))
                losses = network(turn, batch, draws)
                losses["loss"].backward()
                torch.nn.utils.clip_grad_norm_(optimizer.parameters, 1.0)
                optimizer.step(step, steps)
                recent = [*recent[-199:], float(losses.get("velocity", losses.get("latent", 0.0)))]
            if (step + 1) % 100 == 0:
                spent = time.monotonic() - started
                print(f"{name} {step + 1}: {np.mean(recent):.4f}, {spent:.0f} s", flush=True)

    def held_out(self) -> dict[str, dict[str, Any]]:
        """Tiles of the held-out photos, degraded once, with both kinds of words."""
        found = {}
        for index, (name, photo) in enumerate(held_out_photos(SHORT_SIDE).items()):
            hq = fixed_crops(photo, self.options.tiles, self.tile)
            lq = self.lq(hq, self.draws(3, index).generator)
            local, whole = [colour_words(tile) for tile in hq], [colour_words(photo)] * len(hq)
            found[name] = {"hq": hq, "lq": lq, "local": local, "whole": whole}
        return found

    @torch.no_grad()
    def velocity_errors(self, network: Any, pair: dict[str, Any], seed: int, control: bool, local: bool) -> Tensor:
        """Of each tile, the mean over TIMES, `[n]`."""
        from realisr.training.dreamsr.losses import velocity_error
        from realisr.training.flow import noisy

        batch = self.prepared(pair["hq"], pair["lq"], pair["whole"], pair["local"] if local else pair["whole"])
        errors = []
        for number, time_ in enumerate(TIMES):
            noise = self.draws(4, 100 * seed + number).normal(*batch["hq"].shape)
            t = torch.full((len(noise),), time_)
            condition = batch["condition"] if control else None
            velocity = network.velocity(noisy(batch["hq"], noise, t), t, batch, condition)
            errors.append(velocity_error(velocity, batch["hq"], noise))
        return torch.stack(errors).mean(dim=0)

    def measure(self, network: Any, pairs: dict[str, dict[str, Any]], control: bool, local: bool) -> dict[str, Tensor]:
        return {
            name: self.velocity_errors(network, pair, seed, control, local)
            for seed, (name, pair) in enumerate(pairs.items())
        }

    @torch.no_grad()
    def removal_psnr(self, network: Any, pairs: dict[str, dict[str, Any]], lora: bool) -> float:
        """Mean PSNR of one removal forward on the held-out tiles, with patch prompts."""
        results = []
        for pair in pairs.values():
            batch = self.prepared(pair["hq"], pair["lq"], pair["whole"], pair["local"])
            t = torch.ones(len(pair["hq"]))
            clean = batch["lq"] - network.velocity(batch["lq"], t, batch, batch["lq"], lora)
            results.append(psnr(self.autoencoder.decode(clean) / 2 + 0.5, pair["hq"]))
        return torch.cat(results).mean().item()


def control_parameters(network: Any) -> list[Any]:
    return [(name, value) for name, value in network.named_parameters() if name.startswith("flux.control.")]


def run(options: argparse.Namespace) -> None:
    experiment = Experiment(options)
    started = time.monotonic()
    weights = experiment.pretrain()
    print(f"pre-trained in {time.monotonic() - started:.0f} s")
    pairs = experiment.held_out()
    differ = {
        name: torch.tensor([tile[2] != photo[2] for tile, photo in zip(pair["local"], pair["whole"], strict=True)])
        for name, pair in pairs.items()
    }
    plain = experiment.network(experiment.base(weights))
    rows = {"no control, global prompt": experiment.measure(plain, pairs, control=False, local=False)}
    with_patches = experiment.network(experiment.base(weights), lora=True)
    turns = {"control": control_parameters(with_patches)}
    experiment.train(with_patches, turns, options.steps, True, "control, patch prompts")
    with_global = experiment.network(experiment.base(weights))
    turns = {"control": control_parameters(with_global)}
    experiment.train(with_global, turns, options.steps, False, "control, global prompt")
    rows["control trained with the global prompt"] = experiment.measure(with_global, pairs, control=True, local=False)
    rows["control trained with patch prompts"] = experiment.measure(with_patches, pairs, control=True, local=True)
    rows["the same, given the global prompt"] = experiment.measure(with_patches, pairs, control=True, local=False)
    print(table(rows, differ))
    if options.lora_steps:
        removal(experiment, with_patches, pairs, options.lora_steps)


def removal(experiment: Experiment, network: Any, pairs: dict[str, dict[str, Any]], steps: int) -> None:
    """Train the LoRA with its discriminator on top of the control, and print what one forward is worth."""
    from realisr.training.dreamsr.lora import is_lora

    hq, lq = (torch.cat([pair[name] for pair in pairs.values()]) for name in ("hq", "lq"))
    decode, encode = experiment.autoencoder.decode, experiment.autoencoder.encode
    found = {
        "LQ (grey, bicubic)": psnr(lq, hq).mean().item(),
        "autoencoder alone (ceiling)": psnr(decode(encode(2 * hq - 1)) / 2 + 0.5, hq).mean().item(),
        "removal forward without LoRA": experiment.removal_psnr(network, pairs, lora=False),
    }
    lora = [(name, value) for name, value in network.named_parameters() if is_lora(name)]
    judge = [(name, value) for name, value in network.named_parameters() if name.startswith("discriminator.")]
    experiment.train(network, {"lora": lora, "discriminator": judge}, steps, True, "LoRA")
    found["removal forward with LoRA"] = experiment.removal_psnr(network, pairs, lora=True)
    lines = ["", "| one forward on held-out tiles | PSNR in dB |", "| --- | --- |"]
    print("\n".join([*lines, *(f"| {name} | {value:.2f} |" for name, value in found.items())]))


def table(rows: dict[str, dict[str, Tensor]], differ: dict[str, Tensor]) -> str:
    names = list(differ)
    count = sum(int(which.sum()) for which in differ.values())
    total = sum(len(which) for which in differ.values())
    head = f"| velocity error | {' | '.join(names)} | all {total} tiles | the {count} whose commonest colour differs |"
    lines = [head, "| --- |" + " --- |" * (len(names) + 2)]
    for row, values in rows.items():
        means = [values[name].mean().item() for name in names]
        every = torch.cat([values[name] for name in names]).mean().item()
        other = torch.cat([values[name][differ[name]] for name in names]).mean().item()
        cells = [f"{value:.4f}" for value in means]
        lines.append(f"| {row} | {' | '.join(cells)} | **{every:.4f}** | **{other:.4f}** |")
    return "\n".join(lines)
