"""The methods at their real sizes on one GPU: seconds, memory, and the share of what the chip can do.

    python3 dev/host_env.py run -- benchmarks/gpu.py             (COMFYUI_PATH: your ComfyUI; ten minutes)
    python3 dev/host_env.py run -- benchmarks/gpu.py --rows pure,vicr --json gpu.json
    python3 dev/host_env.py run -- benchmarks/gpu.py --smoke     (the same code on tiny networks, on any machine)

Needs no network and no model: weights are random, made on the device in bfloat16. Rows run through what the nodes run,
from picture to picture, and are printed as they finish, a Markdown table for RESULTS.md and the README. What the
memory or the time left does not allow is a named gap. "bound" is what the chip needs at least, counted on the same
networks without weights (host/cost.py, which the estimate before a run is from, too): every operation by its
arithmetic or by its memory traffic, at the rates of the maker's data sheet; for an unknown chip at rates measured
first. "share" is what the chip would need for the arithmetic alone, or for the traffic alone, of the time it took:
whichever is more. By default all weights stay on the GPU; with --offload ComfyUI keeps elsewhere what does not fit. On
a CPU the peak counts pictures, too. --bounds runs nothing: it prints the bounds on all cards whose data sheet is known.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _gpu_networks import REAL, TINY, Networks, Sizes

from _pack import load_pack
from harness.host import start_host
from host_env import find_host

BUDGET = 600.0
FIRST_GUESS = 4.0
"""How many times its bound a row takes, before any has been measured."""
AGAIN = 20.0
"""Seconds: a row that takes less runs twice, and the second time counts."""
RESERVED = 1.0e9
"""Bytes that the driver and kernels take beside what is counted."""
PAPERS = {"DreamSR": "the paper: 86 s on an H20", "PURE": "the paper: 256.87 s on an A100"}
HEADS = ("row", "seconds", "bound s", "share", "peak GB", "estimated GB", "notes")


@dataclass(frozen=True)
class Plan:
    """What a row will take, by count."""

    cost: Any
    peak: float
    """Bytes."""
    run: Callable[[], Any]
    units: int = 0
    """Image tokens of an autoregressive row."""


@dataclass(frozen=True)
class Row:
    name: str
    plan: Callable[[], Plan]


@dataclass(frozen=True)
class Result:
    """One line of the table; seconds None for a gap."""

    row: str
    seconds: float | None
    bound: float
    share: str
    peak: float
    estimated: float
    notes: str

    def line(self) -> str:
        if self.seconds is None:
            cells = ("", f"{self.bound:.3g}", "", "", f"{self.estimated / 1e9:.2f}", f"**gap**: {self.notes}")
        else:
            peaks = f"{self.peak / 1e9:.2f}", f"{self.estimated / 1e9:.2f}"
            cells = (f"{self.seconds:.2f}", f"{self.bound:.3g}", self.share, *peaks, self.notes)
        return f"| {' | '.join((self.row, *cells))} |"


def prepare(smoke: bool, offload: bool) -> Path:
    """Import ComfyUI and the pack; returns the folder of models."""
    host = find_host()
    if host is None:
        raise SystemExit("There is no ComfyUI here: set COMFYUI_PATH, or run `make setup` once.")
    sys.path.insert(0, str(host.comfyui))
    from comfy.cli_args import args

    # Weights then are where they are used from the start. On a CPU, the attention that GPUs use.
    args.highvram = not offload and not smoke
    args.use_pytorch_cross_attention = True
    base = Path(tempfile.mkdtemp(prefix="realisr-gpu-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    start_host(host.comfyui, base, cpu=smoke)
    load_pack()
    return base / "models"


class Bench:
    """Networks of one kind at a time, and the rows that run on them."""

    def __init__(self, sizes: Sizes, folder: Path, dtype: torch.dtype):
        import comfy.model_management

        self.sizes = sizes
        self.device = comfy.model_management.get_torch_device()
        self.networks = Networks(sizes, dtype, folder)
        self.dtype = dtype
        self.key: Any = None
        self.held: Any = None

    def of(self, key: Any, build: Callable[[torch.device], Any]) -> Any:
        """What `build(device)` makes, kept until another key is asked for."""
        import comfy.model_management

        if self.key != key:
            self.key = self.held = None
            comfy.model_management.unload_all_models()
            gc.collect()
            comfy.model_management.soft_empty_cache(True)
            self.held, self.key = build(self.device), key
        return self.held

    # --- rows --------------------------------------------------------------------------------------------------------

    def rows(self) -> Iterator[Row]:
        """In the order in which ten minutes give the most."""
        small, large = list(self.sizes.images)[:3], list(self.sizes.images)[3:]
        for name in self.sizes.vosr:
            yield from (self.vosr_row(name, True, size) for size in small)
        yield Row(f"PURE, {self.sizes.pure_side}²", self.pure)
        yield self.vicr_row(self.sizes.panels[0])
        width, height, *_ = self.sizes.dreamsr
        yield Row(f"DreamSR, 1 + {self.sizes.texture_steps} steps, {width} x {height}", self.dreamsr)
        yield from (self.vicr_row(panel) for panel in self.sizes.panels[1:])
        for name in self.sizes.vosr:
            yield from (self.vosr_row(name, False, size) for size in small)
        for one_step in (True, False):
            yield from (self.vosr_row(name, one_step, size) for name in self.sizes.vosr for size in large)

    def vosr_row(self, name: str, one_step: bool, size: str) -> Row:
        steps = "one step" if one_step else f"{self.sizes.steps} guided steps"
        return Row(f"VOSR {name}, {steps}, {size}", lambda: self.vosr(name, one_step, self.sizes.images[size]))

    def vicr_row(self, panel: int) -> Row:
        return Row(f"VICR, {self.sizes.vicr_steps} steps, panel {panel}", lambda: self.vicr(panel))

    def vosr(self, name: str, one_step: bool, side: int) -> Plan:
        from realisr.host.vosr.estimate import estimate_run
        from realisr.host.vosr.restore import VOSRRestoreOptions, restore

        def build(device: torch.device) -> Any:
            made = self.networks
            return made.vosr(name, one_step, device), made.vosr_vae(name, device), made.dinov2(name, device)

        options = VOSRRestoreOptions(side, side, steps=1 if one_step else self.sizes.steps, preview=False)
        run = estimate_run(*build(torch.device("meta")), options)

        def restored() -> Any:
            image = torch.rand(1, side // 4, side // 4, 3)
            return restore(*self.of(("VOSR", name, one_step), build), image, options)

        return Plan(run.cost, run.peak, restored)

    def dreamsr(self) -> Plan:
        from realisr.host.dreamsr.estimate import estimate_run
        from realisr.host.dreamsr.restore import DreamSR, restore_images, tiles_over

        width, height, tile, overlap = self.sizes.dreamsr
        grid, steps = tiles_over(width, height, tile, overlap), self.sizes.texture_steps

        def build(device: torch.device) -> Any:
            made = self.networks
            return made.flux(False, device), made.control(device), made.flux_vae(device)

        run = estimate_run(*build(torch.device("meta")), (width, height), grid, steps, True)

        def restored() -> Any:
            model, control, vae = self.of("DreamSR", build)
            prompts = [self.networks.prompt() for _ in range(len(grid))]
            method = DreamSR(
                model, self.networks.prompt(), control, lora=self.networks.lora(), patch_prompts=prompts,
                texture_steps=steps,
            )  # fmt: skip
            image = torch.rand(1, height // 4, width // 4, 3)
            return restore_images(method, vae, image, (width, height), grid, preview=False)

        return Plan(run.cost, run.peak, restored)

    def vicr(self, panel: int) -> Plan:
        import comfy.model_management
        from _gpu_vicr import VICRRun

        from realisr.host.forwards import fill_sampling, for_cards, vae_forward

        def build(device: torch.device) -> Any:
            return self.networks.flux(True, device), self.networks.flux_vae(device)

        described, vae = build(torch.device("meta"))
        forward = fill_sampling(described, panel // 8, 2 * panel // 8)
        # InpaintModelConditioning encodes the canvas twice, as it is and with the panel blanked.
        coding = vae_forward(vae, "encoding", panel, 2 * panel).times(2), vae_forward(vae, "decoding", panel, 2 * panel)
        sampled, coded = (comfy.model_management.module_size(each) for each in (described.model, vae.first_stage_model))
        peak = max(sampled + forward.peak, coded + max(each.peak for each in coding))

        def restored() -> Any:
            model, decoder = self.of("VICR", build)
            return VICRRun(self.networks, model, decoder).restore(panel, self.sizes.vicr_steps)

        sampling = for_cards(forward.times(self.sizes.vicr_steps), described.model.get_dtype_inference())
        return Plan(sampling + coding[0] + coding[1], peak, restored)

    def pure(self) -> Plan:
        from realisr.host.cost import Cost
        from realisr.host.pure.estimate import Parts, estimate_run
        from realisr.host.pure.restore import PURERestoreOptions, Tiles, restore
        from realisr.models.pure.transformer import Chameleon
        from realisr.models.pure.vqgan import VQGAN

        side, config, vq = self.sizes.pure_side, self.networks.pure_config(), self.networks.vqgan_config()
        options = PURERestoreOptions(side, side, tiles=Tiles(side, side // 8), preview=False)
        with torch.device("meta"):
            weights, coder = (
                sum(each.nbytes for each in network.parameters())
                for network in (Chameleon(config, self.dtype), VQGAN(vq, torch.float32))
            )
        parts = Parts(config, self.dtype, self.networks.tokenizer(), weights, coder, vq.base, vq)
        run = estimate_run(parts, options)
        picture = torch.rand(1, side // 4, side // 4, 3)
        cost: Cost = run.cost or Cost()
        build = lambda _: self.networks.pure()  # noqa: E731
        return Plan(cost, run.peak, lambda: restore(self.of("PURE", build), picture, options), (side // 8) ** 2)

    # --- measuring ---------------------------------------------------------------------------------------------------

    def measured(self, run: Callable[[], Any]) -> tuple[float, float]:
        """(seconds, bytes at the peak, weights included)."""
        if self.device.type != "cuda":
            from realisr.host.cost import Meter

            with torch.inference_mode(), Meter(self.device.type) as meter:
                seconds = clock(run)
            return seconds, float(meter.peak)
        torch.cuda.reset_peak_memory_stats()
        with torch.inference_mode():
            seconds = clock(run)
        return seconds, float(torch.cuda.max_memory_allocated())

    def result(self, row: Row, card: Any, left: float, pace: float, fits: bool) -> Result:
        """A row run, or the gap it leaves. left: seconds of the budget. pace: of a second of the bound."""
        import comfy.model_management

        plan = row.plan()
        bound = plan.cost.seconds(card)

        def gap(why: str) -> Result:
            return Result(row.name, None, bound, "", 0, plan.peak, why)

        if fits and plan.peak + RESERVED > card.gigabytes * 1e9:
            return gap(f"needs {plan.peak / 1e9:.1f} GB, the card has {card.gigabytes:.0f} GB (--offload)")
        if bound * pace > left:
            return gap(f"about {bound * pace:.0f} s at the pace of the rows so far, {left:.0f} s of the time are left")
        try:
            seconds, peak = self.measured(plan.run)
            if seconds < min(AGAIN, left / 3) and self.device.type == "cuda":
                seconds, peak = self.measured(plan.run)
        except Exception as error:
            comfy.model_management.raise_non_oom(error)
            self.key = self.held = None
            return gap("out of memory")
        arithmetic = plan.cost.flop / (card.tflops * 1e12) / seconds
        traffic = plan.cost.bytes / (card.bandwidth * 1e9) / seconds
        share = f"{arithmetic:.0%} of FLOP" if arithmetic > traffic else f"{traffic:.0%} of bytes"
        notes = [f"{plan.units / seconds:.0f} tokens/s"] if plan.units else []
        notes += [said for method, said in PAPERS.items() if row.name.startswith(method)]
        return Result(row.name, seconds, bound, share, peak, plan.peak, "; ".join(notes))


def clock(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def card_here(device: torch.device) -> Any:
    """The card's data sheet; for one that has none here, rates that are measured first."""
    from realisr.host.cost import CARDS, Card

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    memory = torch.cuda.get_device_properties(device).total_memory / 1e9 if device.type == "cuda" else 0
    found = next((card for card in sorted(CARDS, key=lambda card: -len(card.name)) if card.name in name), None)
    if found is not None:
        return Card(name, found.tflops, found.bandwidth, round(memory))
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    rate = 2 * side**3 / min(clock(lambda: a @ b) for _ in range(5))
    traffic = 2 * a.nbytes / min(clock(a.clone) for _ in range(5))
    return Card(f"{name}, rates measured", rate / 1e12, traffic / 1e9, round(memory))


def bounds(rows: Sequence[Row]) -> None:
    """Print what rows come to, and the seconds that each card needs at least."""
    from realisr.host.cost import CARDS

    print(f"| row | TFLOP | {' | '.join(card.name for card in CARDS)} |\n|{' --- |' * (2 + len(CARDS))}")
    for row in rows:
        cost = row.plan().cost
        seconds = " | ".join(f"{cost.seconds(card):.3g}" for card in CARDS)
        print(f"| {row.name} | {cost.flop / 1e12:,.0f} | {seconds} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="only rows whose name contains one of these, with commas between")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--offload", action="store_true", help="let ComfyUI keep weights elsewhere")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny networks on the CPU: tries the script, not a machine"
    )
    parser.add_argument("--bounds", action="store_true", help="the least that each card needs, by count alone")
    args = parser.parse_args()
    if not (args.smoke or args.bounds or torch.cuda.is_available()):
        print("no GPU here: skipped (--smoke runs the same code on a CPU, --bounds counts)")
        return
    began = time.perf_counter()
    folder = prepare(args.smoke or args.bounds, args.offload)
    torch.manual_seed(0)
    dtype = torch.float32 if args.smoke else torch.bfloat16
    bench = Bench(TINY if args.smoke else REAL, folder, dtype)
    wanted = [part.strip().lower() for part in args.rows.split(",")]
    rows = [row for row in bench.rows() if any(part in row.name.lower() for part in wanted)]
    if args.bounds:
        bounds(rows)
        return
    card = card_here(bench.device)
    sizes = "tiny networks: says nothing of a machine" if args.smoke else "real sizes, random weights"
    print(f"{card.name}: {card.tflops:.4g} TFLOP/s, {card.bandwidth:.0f} GB/s; torch {torch.__version__}; {sizes}\n")
    print(f"| {' | '.join(HEADS)} |\n|{' --- |' * len(HEADS)}", flush=True)
    results, pace = [], FIRST_GUESS
    for row in rows:
        left = args.budget - (time.perf_counter() - began)
        result = bench.result(row, card, left, 0 if args.smoke else pace, not args.offload and not args.smoke)
        if result.seconds is not None:
            pace = max(1.0, result.seconds / result.bound)
        results.append(result)
        print(result.line(), flush=True)
        if args.json:
            report = {"card": asdict(card), "torch": torch.__version__, "rows": [asdict(each) for each in results]}
            args.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
