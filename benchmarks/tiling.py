"""Tiled MultiDiffusion: what tiling costs over the model alone, and its memory over image sizes.

    python3 dev/host_env.py run -- benchmarks/tiling.py speed  [--hidden 1536 --steps 2 --tile-prompts]
    python3 dev/host_env.py run -- benchmarks/tiling.py memory [--latents 256,512,1024]

speed: a FLUX with blocks of the given width and random weights, tiles of 512 pixels, under the host's Euler sampler.
The plain time is that of the host's own evaluation of the same tiles, one after another, without merging; both run in
one process, alternating, and the fastest of each counts. outside: the share of the tiled time not spent in the
network, which other work on the machine disturbs less. With --tile-prompts every tile has a text of its own, which the
plain run does without: what it takes to make tiles' conditions then shows. Targets: at most 3 % over the plain time
with one tile to a forward, and as many forwards as the grid implies.

memory: a tiled run of a tiny network per size, each in a process of its own: growth of peak memory while sampling,
next to the bytes of one latent of that size. Target: what grows is a small multiple of the latent.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

from _pack import load_pack  # noqa: E402
from harness.host import start_host  # noqa: E402
from host_env import find_host  # noqa: E402

TILE, OVERLAP = 64, 16
"""In latent cells: 512 and 128 pixels."""

CONTEXT, POOLED = 64, 32


def prepare():
    """Import ComfyUI and the pack; on the GPU when there is one, with the attention ComfyUI uses there."""
    import torch

    host = find_host()
    assert host is not None, "no ComfyUI here: run `make setup` once, or set COMFYUI_PATH"
    sys.path.insert(0, str(host.comfyui))
    from comfy.cli_args import args

    # On a CPU ComfyUI falls back to a memory-saving attention, and the comparison would be one of attentions.
    args.use_pytorch_cross_attention = True
    made = start_host(host.comfyui, Path(tempfile.mkdtemp(prefix="realisr-bench-")), cpu=not torch.cuda.is_available())
    load_pack()
    return made


def flux_model(host, heads: int, blocks: int):
    """A FLUX MODEL with random weights through the host's loader."""
    import nodes

    from harness.checkpoints import flux

    weights = flux(heads=heads, double_blocks=blocks, single_blocks=blocks, context_width=CONTEXT, pooled_width=POOLED)
    name = host.save_model("diffusion_models", f"bench_{heads}_{blocks}.safetensors", weights)
    return host.run(nodes.UNETLoader, unet_name=name, weight_dtype="default")[0]


def prompt(tokens: int):
    import torch

    return [[torch.randn(1, tokens, CONTEXT), {"pooled_output": torch.randn(1, POOLED)}]]


def tiling(side: int, per_forward: int):
    from realisr.host.tiling.sampling import Tiling
    from realisr.models.tiles.grid import TileGrid

    grid = TileGrid.fitted((side, side), (TILE, TILE), (OVERLAP, OVERLAP), 2)
    return Tiling(grid, weights="gaussian", per_forward=per_forward)


def sample(model, noise, positive, steps: int, evaluate=None):
    """Euler steps under the host's guider; with `evaluate`, that in place of the host's calc_cond_batch."""
    import comfy.samplers
    import torch
    from comfy.patcher_extension import WrappersMP

    if evaluate is not None:
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "plain", evaluate)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    sigmas = torch.linspace(1.0, 0.0, steps + 1)
    return guider.sample(
        noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0
    )


def tile_by_tile(grid):
    """The host's evaluation of each tile of `grid` by itself, its results left alone."""

    def evaluate(executor, model, conds, x, timestep, model_options):
        for box in grid.boxes:
            executor(model, conds, box.crop(x), timestep, model_options)
        return [x] * len(conds)

    return evaluate


class CountedForwards:
    """Counts calls of a MODEL's network, the items in them, and the seconds they take."""

    def __init__(self):
        self.calls, self.items, self.seconds = 0, 0, 0.0

    def watch(self, model):
        from comfy.patcher_extension import WrappersMP

        def count(executor, x, *args, **kwargs):
            out = []
            self.seconds += clock(lambda: out.append(executor(x, *args, **kwargs)))
            self.calls, self.items = self.calls + 1, self.items + x.shape[0]
            return out[0]

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
        return clone


def clock(call) -> float:
    import torch

    def synchronise() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    synchronise()
    began = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - began


def speed(args: argparse.Namespace) -> None:
    host = prepare()
    import torch

    from realisr.host.dreamsr.control.patch_prompts import with_patch_prompts

    model = flux_model(host, args.hidden // 128, 1)
    positive, noise = prompt(args.tokens), torch.randn(1, 16, args.side, args.side)
    grid = tiling(args.side, 1).grid
    in_tiles = positive
    if args.tile_prompts:
        in_tiles = with_patch_prompts(positive, grid, [prompt(args.tokens) for _ in range(len(grid))], "model")
    print(
        f"FLUX {args.hidden} wide, 1 + 1 blocks, {args.tokens} text tokens; latent {args.side}x{args.side}, "
        f"{len(grid)} tiles of {TILE}x{TILE}, {args.steps} steps, {torch.get_num_threads()} CPU threads"
    )
    heads = f"{'tiles a forward':>16}{'plain s':>10}{'tiled s':>10}{'over plain':>12}{'outside':>9}"
    print(f"{heads}{'forwards':>10}{'implied':>9}")
    with torch.inference_mode():
        sample(model, noise, positive, 1, tile_by_tile(grid))
        for per_forward in map(int, args.batches.split(",")):
            patched = tiling(args.side, per_forward).apply(model)
            plain_s = tiled_s = float("inf")
            for _ in range(args.repeats):
                plain_s = min(plain_s, clock(lambda: sample(model, noise, positive, args.steps, tile_by_tile(grid))))
                counted = CountedForwards()
                watched = counted.watch(patched)
                seconds = clock(lambda w=watched: sample(w, noise, in_tiles, args.steps))
                if seconds < tiled_s:
                    tiled_s, outside = seconds, 1 - counted.seconds / seconds
            implied = -(-len(grid) // per_forward) * args.steps
            assert counted.items == len(grid) * args.steps
            print(
                f"{per_forward:>16}{plain_s:10.2f}{tiled_s:10.2f}{tiled_s / plain_s - 1:12.2%}{outside:9.2%}"
                f"{counted.calls:10}{implied:9}",
                flush=True,
            )


def peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_one(side: int) -> None:
    """Child process: one tiled run, then a line of JSON."""
    host = prepare()
    import torch

    model, positive = flux_model(host, 1, 1), prompt(4)

    def run(side: int) -> int:
        noise = torch.randn(1, 16, side, side)
        before = peak_kilobytes()
        out = sample(tiling(side, 1).apply(model), noise, positive, 1)
        assert out.shape == noise.shape and out.isfinite().all()
        return before

    with torch.inference_mode():
        run(128)
        before = run(side)
    print(json.dumps({"growth": peak_kilobytes() - before, "tiles": len(tiling(side, 1).grid)}))


def memory(args: argparse.Namespace) -> None:
    print(f"{'image':>12}{'tiles':>7}{'latent MB':>11}{'peak growth MB':>16}{'in latents':>12}{'seconds':>9}")
    for side in map(int, args.latents.split(",")):
        began = time.perf_counter()
        child = [sys.executable, __file__, "memory-one", "--side", str(side)]
        done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
        found, seconds = json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - began
        growth, latent = found["growth"] / 1024, 16 * 4 * side**2 / 2**20
        pixels = f"{8 * side}x{8 * side}"
        print(
            f"{pixels:>12}{found['tiles']:7}{latent:11.1f}{growth:16.1f}{growth / latent:12.1f}{seconds:9.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    speed_parser = commands.add_parser("speed")
    speed_parser.add_argument("--hidden", type=int, default=1536, help="width, a multiple of 128; FLUX.1 has 3072")
    speed_parser.add_argument("--tokens", type=int, default=256, help="of text; FLUX.1 has 512")
    speed_parser.add_argument("--side", type=int, default=112, help="of the latent")
    speed_parser.add_argument("--steps", type=int, default=2)
    speed_parser.add_argument("--batches", default="1,2,4", help="tiles to a forward")
    speed_parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the fastest counts")
    speed_parser.add_argument("--tile-prompts", action="store_true", help="a text for each tile")
    memory_parser = commands.add_parser("memory")
    memory_parser.add_argument("--latents", default="256,512,1024", help="latent sides; 1024 is 8192 pixels")
    commands.add_parser("memory-one").add_argument("--side", type=int, required=True)
    args = parser.parse_args()
    if args.command == "memory-one":
        memory_one(args.side)
    elif args.command == "memory":
        memory(args)
    elif args.command == "speed":
        speed(args)
    else:
        speed(parser.parse_args(["speed"]))
        memory(parser.parse_args(["memory"]))


if __name__ == "__main__":
    main()
