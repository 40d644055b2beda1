"""What the presets of the whole-method nodes do: faithful, balanced, creative, on tiny networks trained here.

    python3 dev/host_env.py run -- benchmarks/presets.py vosr [options]

The networks are those of `training_<method>.py` beside this file: the method's own, tiny, minutes of training on real
photos. They show in which direction a preset moves a result, not how good any is. Measured on crops of photos that no
training saw, with the same noise for every preset, each number with the values of models/presets.py and nothing else
changed:

- fidelity: PSNR of the result shrunk four times against the low-quality image shrunk alike. Higher is more faithful.
- detail: mean square of the Laplacian of the result's luma, as a multiple of that of the low-quality image.
- PSNR against the original: what invention costs, or gains.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from _pack import load_pack  # noqa: E402

load_pack()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import training_dreamsr  # noqa: E402
import training_pure  # noqa: E402
import training_vosr  # noqa: E402
from torch import Tensor  # noqa: E402
from training_photos import fixed_crops, held_out_photos, psnr, random_crops, training_photos  # noqa: E402

SHRINK = 4
SEEDS = 3
"""Draws of noise that each number is the mean of."""
LUMA = (0.299, 0.587, 0.114)

Restore = Callable[[dict[str, float], int], Tensor]
"""(the preset's values, seed) -> results `[B, 3, H, W]`."""


def fidelity(images: Tensor, lq: Tensor) -> float:
    return psnr(F.avg_pool2d(images.clamp(0, 1), SHRINK), F.avg_pool2d(lq, SHRINK)).mean().item()


def detail(images: Tensor) -> float:
    luma = (images.clamp(0, 1) * torch.tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    return F.conv2d(luma, kernel[None, None]).square().mean().item()


def report(node: str, restore: Restore, lq: Tensor, hq: Tensor) -> None:
    from realisr.models.presets import PRESETS, TABLE

    print(f"\n| preset | {' | '.join(TABLE[node])} | fidelity | detail | PSNR |")
    print("| --- |" + " --- |" * (len(TABLE[node]) + 3))
    rows = [("the LQ image", dict.fromkeys(TABLE[node]), [lq])]
    for index, preset in enumerate(PRESETS):
        values = {name: each[index] for name, each in TABLE[node].items()}
        rows.append((preset, values, [restore(values, seed) for seed in range(SEEDS)]))
    for name, values, results in rows:
        figures = [(fidelity(each, lq), detail(each) / detail(lq), psnr(each, hq).mean().item()) for each in results]
        close, fine, error = (float(np.mean(column)) for column in zip(*figures, strict=True))
        cells = ["" if value is None else f"{value:g}" for value in values.values()]
        print(f"| {name} | {' | '.join(cells)} | {close:.2f} dB | {fine:.2f} | {error:.2f} dB |", flush=True)


def vosr(options: argparse.Namespace) -> None:
    from realisr.models.presets import VOSR
    from realisr.training.engine.draws import Draws
    from realisr.training.vosr.sampling import restore_latent

    with tempfile.TemporaryDirectory() as folder:
        settings = training_vosr.settings(options, Path(folder) / "flow", model=training_vosr.MODEL)
        engine, method = training_vosr.train(settings)
        engine.run()
        held_out = training_vosr.HeldOut(method, options)
        lq = held_out.latents(method, held_out.lq)

        @torch.no_grad()
        def restore(values: dict[str, float], seed: int) -> Tensor:
            noise = Draws(options.seed, 2**42 + 1 + seed).normal(*lq.shape)
            velocity = lambda x, t, r, z: method.dit(x, t, r, z)  # noqa: E731
            latent = restore_latent(velocity, lq, None, noise, 25, values["restoration_scale"], 0.15)
            return method.latents.decode(latent) / 2 + 0.5

        with engine.average.in_place():
            report(VOSR, restore, held_out.lq, held_out.hq)


def dreamsr(options: argparse.Namespace) -> None:
    from realisr.models.dreamsr.schedule import TEXTURE_STEPS, texture_sigmas
    from realisr.models.presets import DREAMSR

    experiment = training_dreamsr.Experiment(options)
    network = experiment.network(experiment.base(experiment.pretrain()))
    turns = {"control": training_dreamsr.control_parameters(network)}
    experiment.train(network, turns, options.steps, True, "control, patch prompts")
    pairs = list(experiment.held_out().values())

    @torch.no_grad()
    def restore(values: dict[str, float], seed: int) -> Tensor:
        sigmas, results = texture_sigmas(TEXTURE_STEPS, values["texture_start"]), []
        for number, pair in enumerate(pairs):
            batch = experiment.prepared(pair["hq"], pair["lq"], pair["whole"], pair["local"])
            noise = experiment.draws(5, 100 * seed + number).normal(*batch["lq"].shape)
            x = (1 - sigmas[0]) * batch["lq"] + sigmas[0] * noise
            for here, there in pairwise(sigmas):
                t = here.expand(len(x))
                x = x + (there - here) * network.velocity(x, t, batch, batch["condition"])
            results.append(experiment.autoencoder.decode(x) / 2 + 0.5)
        return torch.cat(results)

    report(DREAMSR, restore, *(torch.cat([pair[name] for pair in pairs]) for name in ("lq", "hq")))


def pure(options: argparse.Namespace) -> None:
    from realisr.models.presets import PURE
    from realisr.models.pure.logits import TokenSampling, distribution, draw

    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    photos = training_photos(training_pure.SHORT_SIDE)
    codes = training_pure.PatchCodes(photos, rng)
    network = trained_pure(options, photos, codes, rng)
    side = training_pure.SIDE
    photos_apart = held_out_photos(training_pure.SHORT_SIDE).values()
    hq = torch.cat([fixed_crops(photo, options.crops, side) for photo in photos_apart])
    lq = training_pure.degrade(hq, np.random.default_rng(1))[0]
    data = training_pure.conversations(hq, codes, np.random.default_rng(1))
    places = data.codes[0].nonzero().flatten().tolist()

    @torch.no_grad()
    def restore(values: dict[str, float], seed: int) -> Tensor:
        network.eval()
        ids, sampling = data.ids.clone(), TokenSampling(temperature=values["temperature"])
        generator = torch.Generator().manual_seed(seed)
        for place in places:
            logits = network.transformer.logits(network.transformer(ids[:, :place]))[:, -1, 4 : 4 + training_pure.CODES]
            chances, _, _ = distribution(logits.float(), sampling)
            ids[:, place] = 4 + draw(chances, torch.rand(len(ids), generator=generator))
        drawn = (ids[:, places] - 4).unflatten(1, (side // training_pure.CELL, -1))
        return codes.decode(drawn)

    report(PURE, restore, lq, hq)


def trained_pure(options: argparse.Namespace, photos: list[Tensor], codes: Any, rng: np.random.Generator) -> Any:
    """The network of training_pure.py after its training, without its measurements on the way."""
    from realisr.models.pure.config import ChameleonConfig
    from realisr.training.engine.config import OptimizerSettings, ScheduleSettings
    from realisr.training.engine.optimizers import TurnOptimizer
    from realisr.training.pure.losses import counted_positions
    from realisr.training.pure.network import PURENetwork

    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_layers": 3, "num_heads": 4, "num_kv_heads": 4}
    network = PURENetwork(ChameleonConfig(vocab_size=training_pure.VOCABULARY, **sizes), dropout=0.05)
    for name, value in network.named_parameters():
        if value.dim() == 2 and "norm" not in name:
            torch.nn.init.normal_(value, std=0.02)
    settings = OptimizerSettings(learning_rate=options.rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = ScheduleSettings(warmup=options.steps // 4, cooldown=options.steps - options.steps // 4)
    optimizer = TurnOptimizer(settings, schedule, [{"params": list(network.named_parameters()), "rate": 1.0}])
    network.train()
    for step in range(options.steps):
        crops = random_crops(photos, options.batch, training_pure.SIDE, rng)
        data = training_pure.conversations(crops, codes, rng)
        counted = dict(zip(("rows", "following", "own"), counted_positions(data.labels, False), strict=True))
        loss = network("train", {"ids": data.ids, **counted})["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 4.0)
        optimizer.step(step, options.steps)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    return network


METHODS = {"vosr": (vosr, training_vosr), "dreamsr": (dreamsr, training_dreamsr), "pure": (pure, training_pure)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    commands = parser.add_subparsers(dest="method", required=True)
    for name, (_, module) in METHODS.items():
        module.add_arguments(commands.add_parser(name, help=f"the options of benchmarks/training.py {name}"))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    METHODS[options.method][0](options)
    print(f"\n{time.monotonic() - started:.0f} s in all, {options.threads} thread(s)")


if __name__ == "__main__":
    main()
