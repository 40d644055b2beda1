"""VOSR's sampling in ComfyUI against a plain loop of the same network, and its memory over image sizes.

    python3 dev/host_env.py run -- benchmarks/vosr.py speed  [--size 1.4B --depth 4 --latent 64 --steps 25]
    python3 dev/host_env.py run -- benchmarks/vosr.py memory [--latents 128,256,512,1024]

speed: in one process, alternating, our guider under the host's Euler sampler and a plain loop that runs the full and
the weak branch as two forwards of the same network and computes everything at every step. Random weights; depth can be
cut, the ratio is one of equal blocks. Reported: time of each, their ratio, the largest difference of the results, and
the share of our time spent outside the network. Targets: ratio at least 1.10 for 25 guided steps, at most 3 % outside.

memory: a tiled one-step run of a tiny network per size, each in a process of its own: peak memory less what the
process held before, next to the bytes of the latents and of an RGB image of that size. Target: what remains after the
latents does not grow.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

from _pack import load_pack  # noqa: E402
from harness.host import start_host  # noqa: E402
from host_env import find_host  # noqa: E402

SIZES = {
    "0.5B": {"latent_channels": 4, "hidden_size": 1024, "depth": 28, "num_heads": 16, "mlp_hidden": 2730},
    "1.4B": {"latent_channels": 16, "hidden_size": 1536, "depth": 36, "num_heads": 24, "mlp_hidden": 4096},
}
CONTEXT = {"0.5B": (768, 3072), "1.4B": (1024, 4608)}
CONTEXT_TOKENS = 1024


def prepare():
    """Import ComfyUI and the pack; on the GPU when there is one, with the attention ComfyUI uses there."""
    import torch

    host = find_host()
    assert host is not None, "no ComfyUI here: run `make setup` once, or set COMFYUI_PATH"
    sys.path.insert(0, str(host.comfyui))
    from comfy.cli_args import args

    # On a CPU ComfyUI falls back to a memory-saving attention, and the comparison would be one of attentions.
    args.use_pytorch_cross_attention = True
    start_host(host.comfyui, Path(tempfile.mkdtemp(prefix="realisr-bench-")), cpu=not torch.cuda.is_available())
    load_pack()


def random_model(config, one_step: bool = False):
    """A VOSR MODEL with random weights, as the loader builds one."""
    import torch

    from realisr.host.vosr.files import VOSRFile
    from realisr.host.vosr.loader import build_patcher
    from realisr.host.vosr.model import VOSRInfo
    from realisr.models.vosr.dit import VOSRDiT

    torch.manual_seed(0)
    network = VOSRDiT(config).initialise()
    for parameter in network.final_layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    info = VOSRInfo("benchmark", config, one_step)
    return build_patcher(info, VOSRFile("benchmark", Path("-")), network.state_dict(), {}, disable_dynamic=False)


def conditions(model, latent, features, grid):
    from realisr.host.vosr.conditioning import wire

    raw = model.model.process_latent_out(latent)
    blank = features.new_zeros(1, 1, features.shape[-1])
    tiles = features.chunk(len(grid), dim=1) if grid else None
    return wire(raw, 1.0, blank if grid else features, grid, tiles), wire(raw, 0.15, blank, grid, None)


def ours(model, noise, latent, features, grid, scale: float, steps: int):
    import comfy.samplers
    import torch

    from realisr.host.vosr.guider import RestorationGuider
    from realisr.models.vosr.sampling import RestorationGuidance, euler_times

    guider = RestorationGuider(model, *conditions(model, latent, features, grid), RestorationGuidance(scale))
    sampler = comfy.samplers.ksampler("euler")
    out = guider.sample(noise, torch.zeros_like(noise), sampler, euler_times(steps), disable_pbar=True, seed=0)
    return model.model.process_latent_in(out)


def plain(model, noise, latent, features, grid, scale: float, steps: int):
    """The method as one would write it first: two forwards a step, tile by tile, nothing kept between steps."""
    import torch

    from realisr.models.tiles.merge import merge_tiles
    from realisr.models.vosr.dit import VOSRDiT
    from realisr.models.vosr.sampling import euler_times, guide

    network, device = model.model.diffusion_model, model.load_device
    dtype = model.model.get_dtype_inference()
    latent, features, x = (tensor.to(device) for tensor in (latent, features, noise))

    def forward(noisy, lq, z, t, r):
        time, end = (torch.full((noisy.shape[0],), value, device=device) for value in (t, r))
        fields = torch.cat([lq, noisy], dim=1).to(dtype)
        return VOSRDiT.forward(network, fields, time, end, z.to(dtype)).float()

    def velocity(noisy, lq, z, t, r):
        full = forward(noisy, lq, z, t, r)
        return full if scale == 1.0 else guide(full, forward(noisy, 0.15 * lq, torch.zeros_like(z), t, r), scale)

    times = euler_times(steps).tolist()
    for start, end in pairwise(times):
        if grid is None:
            v = velocity(x, latent, features, start, end)
        else:
            tokens = features.unflatten(1, (len(grid), -1))

            def tile(first, boxes, start=start, end=end, x=x, tokens=tokens):
                return [
                    velocity(box.crop(x), box.crop(latent), tokens[:, first + i], start, end)
                    for i, box in enumerate(boxes)
                ]

            v = merge_tiles(grid, x, tile)
        x = x - (start - end) * v
    return x.cpu()


class NetworkClock:
    """Time spent inside the network: its forward and the encoding of contexts."""

    def __init__(self, network):
        self.seconds = 0.0
        self.network = network
        self.calls = {name: getattr(network, name) for name in ("forward", "encode_context")}

    def timed(self, call):
        def run(*args, **kwargs):
            synchronise()
            began = time.perf_counter()
            out = call(*args, **kwargs)
            synchronise()
            self.seconds += time.perf_counter() - began
            return out

        return run

    def __enter__(self):
        for name, call in self.calls.items():
            setattr(self.network, name, self.timed(call))
        return self

    def __exit__(self, *exc):
        for name in self.calls:
            delattr(self.network, name)


def synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock(call) -> tuple[float, object]:
    synchronise()
    began = time.perf_counter()
    out = call()
    synchronise()
    return time.perf_counter() - began, out


def speed(args: argparse.Namespace) -> None:
    prepare()
    import torch

    from realisr.models.tiles.grid import vosr_tile_grid
    from realisr.models.vosr.config import VOSRConfig

    width, hidden = CONTEXT[args.size]
    config = VOSRConfig(**SIZES[args.size], context_width=width, context_hidden=hidden)
    config = replace(config, depth=args.depth or config.depth)
    print(f"{args.size} widths, depth {config.depth}, latent {args.latent}, {torch.get_num_threads()} CPU threads")
    cases = [
        ("guided, untiled", False, args.latent, 0.5, args.steps, False),
        ("guided, tiled", False, args.latent * 7 // 4, 0.5, args.tiled_steps, True),
        ("one-step, untiled", True, args.latent, 1.0, 1, False),
        ("one-step, tiled", True, args.latent * 7 // 4, 1.0, 1, True),
    ]
    print(f"{'case':20}{'steps':>6}{'plain s':>10}{'ours s':>10}{'ratio':>8}{'outside':>9}{'max diff':>10}")
    models: dict[bool, object] = {}
    for name, one_step, side, scale, steps, tiled in cases:
        if args.only not in name:
            continue
        if one_step not in models:
            models.clear()
            models[one_step] = random_model(replace(config, has_end_time=one_step), one_step)
        model = models[one_step]
        grid = vosr_tile_grid(side, side, args.latent * 8, args.latent) if tiled else None
        tiles = len(grid) if grid else 1
        noise, latent = torch.randn(2, 1, config.latent_channels, side, side)
        features = torch.randn(1, tiles * CONTEXT_TOKENS, width)
        inputs = (model, noise, latent, features, grid, scale)
        with torch.inference_mode():
            ours(*inputs, 1)
            plain_s = ours_s = float("inf")
            for _ in range(args.repeats):
                seconds, expected = clock(lambda inputs=inputs, steps=steps: plain(*inputs, steps))
                plain_s = min(plain_s, seconds)
                with NetworkClock(model.model.diffusion_model) as inside:
                    seconds, result = clock(lambda inputs=inputs, steps=steps: ours(*inputs, steps))
                if seconds < ours_s:
                    ours_s, outside = seconds, 1 - inside.seconds / seconds
        difference = (result - expected).abs().max().item()
        print(
            f"{name:20}{steps:6}{plain_s:10.2f}{ours_s:10.2f}{plain_s / ours_s:8.3f}{outside:9.2%}{difference:10.1e}",
            flush=True,
        )


def peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_one(side: int) -> None:
    """Child process: one tiled run, then a line of JSON."""
    prepare()
    import torch

    from realisr.models.tiles.grid import vosr_tile_grid
    from realisr.models.vosr.config import VOSRConfig

    config = VOSRConfig(
        hidden_size=64,
        depth=2,
        num_heads=1,
        mlp_hidden=170,
        context_width=16,
        context_hidden=64,
        has_end_time=True,
    )
    model = random_model(config, one_step=True)

    def run(side: int) -> None:
        grid = vosr_tile_grid(side, side, 512, 64)
        noise, latent = torch.randn(2, 1, config.latent_channels, side, side)
        features = torch.randn(1, (len(grid) if grid else 1) * CONTEXT_TOKENS, config.context_width)
        held.append((noise, latent, features))
        before.append(peak_kilobytes())
        ours(model, noise, latent, features, grid, 1.0, 1)

    held: list[object] = []
    before: list[int] = []
    with torch.inference_mode():
        run(128)
        held.clear()
        run(side)
    print(json.dumps({"growth": peak_kilobytes() - before[1]}))


def memory(args: argparse.Namespace) -> None:
    print(f"{'image':>12}{'tiles':>7}{'latent MB':>11}{'RGB MB':>9}{'peak growth MB':>16}{'of latents':>12}")
    for side in map(int, args.latents.split(",")):
        child = [sys.executable, __file__, "memory-one", "--side", str(side)]
        done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
        growth = json.loads(done.stdout.splitlines()[-1])["growth"] / 1024
        latent, image = 16 * side**2 / 2**20, 12 * (8 * side) ** 2 / 2**20
        tiles = max(1, -(-(side - 8) // 56)) ** 2
        pixels = f"{8 * side}x{8 * side}"
        print(f"{pixels:>12}{tiles:7}{latent:11.1f}{image:9.1f}{growth:16.1f}{growth / latent:12.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    speed_parser = commands.add_parser("speed")
    speed_parser.add_argument("--size", choices=SIZES, default="1.4B")
    speed_parser.add_argument("--depth", type=int, default=4, help="blocks; 0 for the released depth")
    speed_parser.add_argument("--latent", type=int, default=64, help="side of the untiled latent and of a tile")
    speed_parser.add_argument("--steps", type=int, default=25)
    speed_parser.add_argument("--tiled-steps", type=int, default=5)
    speed_parser.add_argument("--repeats", type=int, default=2, help="runs of each, of which the fastest counts")
    speed_parser.add_argument("--only", default="", help="cases whose name contains this")
    memory_parser = commands.add_parser("memory")
    memory_parser.add_argument("--latents", default="128,256,512,1024", help="latent sides; 128 is a 1024-pixel image")
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
