"""Train a VOSR network from scratch, continue a training, distil a one-step student, or export a result.

python scripts/train_vosr.py flow --config nano --out runs/nano --builtin-photos --procedural 400 --steps 6000
python scripts/train_vosr.py flow --out runs/nano --resume ...          (the same command with --resume)
python scripts/train_vosr.py distill --teacher runs/nano --out runs/nano_os --images ~/photos --steps 3000
python scripts/train_vosr.py export runs/nano weights/vosr_nano.safetensors
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from _pack import load_pack

load_pack()
from realisr.models.vosr.dit import VOSRDiT  # noqa: E402
from realisr.training.data import (  # noqa: E402
    TRAINING_PHOTOS,
    VALIDATION_PHOTOS,
    PairBatches,
    builtin_photos,
    folder_images,
    procedural_pool,
    read_image,
    validation_sets,
)
from realisr.training.degradations import DegradationMixture, SimpleRange  # noqa: E402
from realisr.training.vosr_losses import Distillation  # noqa: E402
from realisr.training.vosr_setup import PRESETS, make_latents, new_network, new_student, student_args  # noqa: E402
from realisr.training.vosr_start import start_from_condition  # noqa: E402
from realisr.training.vosr_trainer import LatentSpace, Trainer, TrainOptions, Validation, cpu_threads  # noqa: E402
from realisr.training.vosr_weights import export, load_model  # noqa: E402

START_BATCHES = 16
"""Training batches the statistics of --init condition come from."""


def read_args(config: str) -> dict[str, Any]:
    """A preset by name, or an args.json."""
    if config in PRESETS:
        return dict(PRESETS[config])
    path = Path(config)
    if not path.is_file():
        raise SystemExit(f"--config is '{config}': use one of {', '.join(PRESETS)} or the path of an args.json")
    return json.loads(path.read_text(encoding="utf-8"))


def make_sources(options: argparse.Namespace, side: int) -> list[tuple[float, Sequence[Any]]]:
    """Groups of training images with their weights."""
    sources: list[tuple[float, Sequence[Any]]] = []
    if options.images:
        files: Sequence[Any] = [path for folder in options.images for path in folder_images(folder)]
        images = [read_image(path) for path in files] if options.in_memory else files
        sources.append((options.images_weight, images))
    if options.builtin_photos:
        sources.append((options.photos_weight, builtin_photos(TRAINING_PHOTOS)))
    if options.procedural:
        sources.append((options.procedural_weight, procedural_pool(options.procedural, side, options.seed)))
    if not sources:
        raise SystemExit("no training images: give --images FOLDER, --builtin-photos or --procedural COUNT")
    return sources


def make_validation(options: argparse.Namespace, crop: int) -> Validation | None:
    """Crops of held-out photos; None without photos."""
    if options.validation:
        photos = [read_image(path) for folder in options.validation for path in folder_images(folder)]
    elif options.builtin_photos:
        photos = builtin_photos(VALIDATION_PHOTOS)
    else:
        return None
    return Validation(validation_sets(photos, crop))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for mode in ("flow", "distill"):
        add_training_options(commands.add_parser(mode), mode)
    exporter = commands.add_parser("export")
    exporter.add_argument("folder", type=Path)
    exporter.add_argument("target", type=Path)
    exporter.add_argument("--one-step", action="store_true", help="trained at t = 1 alone: one unguided step")
    return parser.parse_args(argv)


def add_training_options(parser: argparse.ArgumentParser, mode: str) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the run")
    add("--resume", action="store_true", help="continue the run in --out")
    add("--steps", type=int, required=True, help="optimizer steps in all, those before --resume included")
    if mode == "flow":
        add("--config", default="nano", help="nano, 0.5B, 1.4B or an args.json")
        add(
            "--init",
            choices=("reference", "condition"),
            default="reference",
            help="initialisation: the paper's, or one that starts as the best linear estimator",
        )
        add("--init-from", type=Path, help="folder or exported file whose weights to start from")
        add(
            "--logit-normal",
            type=float,
            nargs=2,
            metavar=("MEAN", "STD"),
            help="draw logit(t) from a normal distribution; default: t is uniform, as in the paper",
        )
        add("--balance", type=float, help="weight samples by s / (s + mse(lq, hq)) (ours)")
        add("--noise-only-chance", type=float, default=0.0, help="part of the samples at t = 1 (ours; the paper: 0)")
    else:
        add("--teacher", type=Path, required=True, help="folder or exported file of the multi-step model")
        add("--method", choices=("rcgm", "shortcut"), default="rcgm")
        add("--guidance", type=float, default=0.5, help="scale of the teacher's guided velocity")
    add("--images", type=Path, nargs="+", default=[], help="folders of training images")
    add("--images-weight", type=float, default=1.0)
    add("--in-memory", action="store_true", help="decode the images of --images once, at the start")
    add("--builtin-photos", action="store_true", help="photos that the scikit-image package carries")
    add("--photos-weight", type=float, default=0.6)
    add("--procedural", type=int, default=0, help="number of procedural images to make")
    add("--procedural-weight", type=float, default=0.4)
    add("--validation", type=Path, nargs="+", default=[], help="folders of images to validate on")
    add(
        "--mixture",
        type=float,
        nargs=3,
        metavar=("CAMERA", "SIMPLE", "REAL_WORLD"),
        help="weights of the kinds of degradation; default: simple ones alone",
    )
    add("--latents", help="module:function that makes the latent space of models with a VAE")
    add("--batch", type=int, default=8)
    add("--crop", type=int, help="side of the training crops in pixels; default: the model's training resolution")
    add("--window", type=int, help="side of the degraded windows crops are cut from; default: three crops")
    add("--crops-per-window", type=int, default=4)
    add("--workers", type=int, default=1, help="processes that prepare batches")
    add("--optimizer", choices=("adamw", "muon"), default="adamw")
    add("--lr", type=float, default=5e-5 if mode == "flow" else 2e-5)
    add("--edge-rate", type=float, default=1.0, help="factor of --lr for the embedding and the final layer")
    add("--warmup", type=int, default=0)
    add("--cooldown", type=int, default=0, help="steps over which the learning rate falls to 0 at the end")
    add("--weight-decay", type=float, default=0.01)
    add("--ema", type=float, default=0.9999)
    add("--weak-ratio", type=float, default=0.1)
    add(
        "--condition-strength",
        type=float,
        nargs=2,
        default=(5.0, 1.0),
        metavar=("MEAN", "STD"),
        help="the full condition keeps sigmoid(N(MEAN, STD)) of its amplitude and gets noise",
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--precision", choices=("fp32", "bf16"), default="bf16" if torch.cuda.is_available() else "fp32")
    add("--compile", action="store_true")
    add("--gradient-checkpointing", action="store_true")
    add("--threads", type=int, default=cpu_threads())
    add("--seed", type=int, default=0)
    for name, every in (("log", 20), ("validate", 500), ("save", 500)):
        add(f"--{name}-every", type=int, default=every)


def train_options(options: argparse.Namespace, args: dict[str, Any]) -> TrainOptions:
    distill = options.command == "distill"
    low, high = args["weak_cond_strength_aelq_list"]
    if distill:
        low = high = args["weak_cond_strength_aelq"]
    return TrainOptions(
        steps=options.steps,
        mode=options.command,
        optimizer=options.optimizer,
        learning_rate=options.lr,
        edge_rate=options.edge_rate,
        warmup=options.warmup,
        cooldown=options.cooldown,
        weight_decay=options.weight_decay,
        ema_decay=options.ema,
        weak_ratio=options.weak_ratio,
        weak_strengths=(low, high),
        condition_strength=tuple(options.condition_strength),
        noise_only_chance=0.0 if distill else options.noise_only_chance,
        balance=None if distill else options.balance,
        logit_normal=None if distill or options.logit_normal is None else tuple(options.logit_normal),
        distillation=Distillation(options.method, options.guidance) if distill else Distillation(),
        precision=options.precision,
        compile=options.compile,
        gradient_checkpointing=options.gradient_checkpointing,
        seed=options.seed,
        log_every=options.log_every,
        validate_every=options.validate_every,
        save_every=options.save_every,
    )


def starting_point(options: argparse.Namespace) -> tuple[dict[str, Any], LatentSpace, VOSRDiT, VOSRDiT | None]:
    """(args, latent space, network to train, teacher)."""
    if options.command == "flow":
        args, teacher = read_args(options.config), None
    else:
        teacher_args, teacher = load_model(options.teacher)
        args = student_args(teacher_args, options.method)
    latents = make_latents(args, options.latents)
    common = (args, latents, options.gradient_checkpointing, options.seed)
    if teacher is not None:
        return args, latents, new_student(*common, teacher), teacher
    return args, latents, new_network(*common, options.init_from), None


def train(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    args, latents, model, teacher = starting_point(options)
    crop = options.crop or args["resolution"]
    window = options.window or 3 * crop
    options.out.mkdir(parents=True, exist_ok=True)
    data = PairBatches(
        make_sources(options, max(window, 256)),
        SimpleRange() if options.mixture is None else DegradationMixture(tuple(options.mixture)),
        options.steps,
        options.batch,
        crop,
        window,
        options.crops_per_window,
        options.seed,
    )
    if options.command == "flow" and options.init == "condition":
        lq = torch.cat([latents.encode(data[step][1]) for step in range(START_BATCHES)])
        one_step = options.noise_only_chance == 1
        start_from_condition(model, lq, torch.Generator().manual_seed(options.seed), one_step=one_step)
    device = torch.device(options.device)
    trainer = Trainer(train_options(options, args), args, model, latents, options.out, device, teacher)
    if options.resume:
        trainer.resume()
    elif trainer.state_file.exists():
        raise SystemExit(f"{options.out} already holds a run: add --resume to continue it, or choose another --out")
    loader = DataLoader(data, batch_size=None, sampler=range(trainer.step, options.steps), num_workers=options.workers)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, steps {trainer.step} to {options.steps}, {options.device}", flush=True)
    trainer.run(loader, make_validation(options, crop))


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    if options.command == "export":
        export(options.folder, options.target, one_step=options.one_step)
        print(f"{options.target}: {options.target.stat().st_size / 1e6:.2f} MB")
        return
    try:
        train(options)
    except ValueError as error:  # settings that cannot work; the message says what to change
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
