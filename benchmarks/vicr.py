"""VICR's additions against FLUX Fill itself: bridge and builder, diptych tiles, the tiling loop.

    python3 dev/host_env.py run -- benchmarks/vicr.py overhead [--panel 512]
    python3 dev/host_env.py run -- benchmarks/vicr.py area     [--panels 512,1024,2048,4096]
    python3 dev/host_env.py run -- benchmarks/vicr.py loop     [--panel 896 --tile 512 --overlap 128]

overhead: what bridge and builder add to one forward of FLUX Fill. Counted in floating-point operations at full size
(without memory, on torch's meta device), and measured at a reduced width, where FLUX is cheaper and the builder is not,
so that the measured share is an upper bound. Target: at most 1 % of a single forward; a run has 30.

area: one evaluation of the whole canvas against all its tiles: counted at full size without overlap (equal area) and
with an overlap of a quarter, and measured at a reduced width for the smallest panel of more than one tile. Attention
grows with the square of the canvas, tiles with its area.

loop: share of a tiled run spent outside the network (cropping, conditions, merging, the host's sampler), per tile and
for a plain Euler run of the host on one tile. Target: at most 3 %.

Random weights throughout; times are the fastest of several.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from vosr import clock, prepare, synchronise

TEXT_TOKENS, TEXT_WIDTH, POOLED, CELL = 512, 4096, 768, 8
FULL = {"hidden_size": 3072, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "context_in_dim": TEXT_WIDTH}
REDUCED = {"double_blocks": 1, "single_blocks": 2, "context_width": 512, "pooled_width": POOLED}
HEADS, HEADS_OVERHEAD = 4, 8
"""Of 128 features each; FLUX has 24."""


def flux_operations(height: int, width: int) -> int:
    """Floating-point operations of one FLUX.1 Fill forward over a latent of height x width cells."""
    import comfy.ldm.flux.model
    import comfy.ops
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = comfy.ldm.flux.model.Flux(
        **FULL,
        image_model="flux",
        in_channels=96,
        out_channels=16,
        vec_in_dim=POOLED,
        mlp_ratio=4.0,
        axes_dim=[16, 56, 56],
        txt_ids_dims=[],
        theta=10000,
        patch_size=2,
        qkv_bias=True,
        guidance_embed=True,
        device="meta",
        dtype=torch.bfloat16,
        operations=comfy.ops.disable_weight_init,
    )

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=torch.bfloat16)

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(
            empty(1, 96, height, width),
            empty(1),
            empty(1, TEXT_TOKENS, TEXT_WIDTH),
            empty(1, POOLED),
            guidance=empty(1),
        )
    return counter.get_total_flops()


def bridge_operations() -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from realisr.models.vicr.bridge import BridgeConfig, VisionContextBridge

    bridge = VisionContextBridge(BridgeConfig(768, FULL["hidden_size"], FULL["hidden_size"])).to("meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        bridge(torch.empty(1, 768, device="meta"))
    return counter.get_total_flops() + FULL["hidden_size"]


def builder_operations(panel: int) -> int:
    """Two passes of four taps per value, a multiplication and an addition each; padding and joining only copy."""
    return panel * panel * 3 * 2 * 4 * 2


def reduced_fill(heads: int = HEADS):
    """(the host, a FLUX Fill MODEL of reduced width)."""
    import folder_paths

    from harness import vicr
    from harness.checkpoints import flux
    from harness.host import InProcessHost

    host = InProcessHost(Path(folder_paths.models_dir).parent)
    return host, vicr.load_fill(host, "bench_fill", flux(fill_model=True, heads=heads, **REDUCED))


def text():
    import torch

    tokens = torch.randn(1, TEXT_TOKENS, REDUCED["context_width"])
    return [[tokens, {"pooled_output": torch.randn(1, POOLED), "guidance": 30.0}]]


def fastest(repeats: int, *calls) -> list[float]:
    """Seconds of each call, the best of `repeats` rounds in which they take turns."""
    best = [float("inf")] * len(calls)
    for _ in range(repeats):
        best = [min(seconds, clock(call)[0]) for seconds, call in zip(best, calls, strict=True)]
    return best


def forward(model, height: int, width: int):
    """A call of the network alone on a latent of height x width cells."""
    import comfy.model_management
    import torch

    comfy.model_management.load_models_gpu([model])
    network, device, dtype = model.model.diffusion_model, model.load_device, model.model.get_dtype_inference()

    def put(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    inputs = (put(1, 96, height, width), torch.ones(1, device=device), put(1, TEXT_TOKENS, REDUCED["context_width"]))
    pooled, guidance = put(1, POOLED), torch.full((1,), 30.0, device=device)
    return lambda: network(*inputs, pooled, guidance=guidance)


def overhead(args: argparse.Namespace) -> None:
    prepare()
    import torch

    from harness import vicr
    from harness.checkpoints import vision_context_bridge
    from realisr.models.vicr.diptych import build_diptych

    side = args.panel // CELL
    flux, bridge, builder = flux_operations(side, 2 * side), bridge_operations(), builder_operations(args.panel)
    print(
        f"full size, panel {args.panel}: FLUX forward {flux / 1e12:.2f} TFLOP, bridge {bridge / 1e6:.1f} MFLOP, "
        f"builder {builder / 1e6:.1f} MFLOP: {(bridge + builder) / flux:.6%} of one forward"
    )

    host, model = reduced_fill(HEADS_OVERHEAD)
    hidden = 128 * HEADS_OVERHEAD
    patch = vicr.load_bridge(host, "bench_bridge", vision_context_bridge(hidden=FULL["hidden_size"], width=hidden))
    lq, embeds, wire = torch.rand(1, args.panel // 4, args.panel // 4, 3), torch.randn(1, 768), text()
    with torch.inference_mode():
        call = forward(model, side, 2 * side)
        call()
        (run,) = fastest(args.repeats, call)
        build, bridge_s = fastest(
            20,
            lambda: build_diptych(lq, args.panel, args.panel, "side by side"),
            lambda: vicr.bridged(model, wire, patch, embeds),
        )
    blocks = f"{REDUCED['double_blocks']} + {REDUCED['single_blocks']} blocks"
    print(
        f"measured, {hidden} wide, {blocks}: forward {run:.3f} s, builder {build * 1e3:.1f} ms, "
        f"bridge node {bridge_s * 1e3:.1f} ms: {(build + bridge_s) / run:.3%}"
    )


def tile_grid(panel: int, tile: int, overlap: int):
    from realisr.models.tiles.grid import TileGrid

    side, cells, shared = (length // CELL for length in (panel, tile, overlap))
    return TileGrid.fitted((side, side), (cells, cells), (shared, shared), 2)


def area(args: argparse.Namespace) -> None:
    prepare()
    import torch

    panels = [int(panel) for panel in args.panels.split(",")]
    one = flux_operations(args.tile // CELL, 2 * args.tile // CELL)
    print(f"{'panel':>6}{'whole TFLOP':>13}{'tiles':>7}{'of whole':>10}{'with overlap':>14}{'of whole':>10}")
    for panel in panels:
        whole = flux_operations(panel // CELL, 2 * panel // CELL)
        counts = [len(tile_grid(panel, args.tile, overlap)) for overlap in (0, args.tile // 4)]
        shares = [count * one / whole for count in counts]
        print(f"{panel:6}{whole / 1e12:13.1f}{counts[0]:7}{shares[0]:10.3f}{counts[1]:14}{shares[1]:10.3f}")

    panel = min((panel for panel in panels if panel > args.tile), default=None)
    if panel is None:
        return
    _, model = reduced_fill()
    with torch.inference_mode():
        tile_call = forward(model, args.tile // CELL, 2 * args.tile // CELL)
        whole_call = forward(model, panel // CELL, 2 * panel // CELL)
        tile_call()
        whole_s, tile_s = fastest(args.repeats, whole_call, tile_call)
    for overlap in (0, args.tile // 4):
        count = len(tile_grid(panel, args.tile, overlap))
        print(
            f"measured at reduced width, panel {panel}, overlap {overlap}: whole {whole_s:.2f} s, {count} tiles "
            f"{count * tile_s:.2f} s, ratio {count * tile_s / whole_s:.3f}"
        )


class NetworkClock:
    """Time spent inside the network's forward, and how often it ran."""

    def __init__(self, network):
        self.network, self.forward = network, network.forward
        self.seconds, self.calls = 0.0, 0

    def timed(self, *args, **kwargs):
        synchronise()
        began = time.perf_counter()
        out = self.forward(*args, **kwargs)
        synchronise()
        self.seconds, self.calls = self.seconds + time.perf_counter() - began, self.calls + 1
        return out

    def __enter__(self):
        self.network.forward = self.timed
        return self

    def __exit__(self, *exc):
        del self.network.forward


def loop(args: argparse.Namespace) -> None:
    prepare()
    import comfy.samplers
    import nodes
    import torch

    from harness.checkpoints import taesd
    from realisr.host.vicr.tiles import DiptychTileOptions, tile_diptych
    from realisr.models.vicr.diptych import build_diptych
    from realisr.models.vicr.sigmas import flow_match_sigmas

    host, model = reduced_fill()
    (vae,) = host.run(nodes.VAELoader, vae_name=host.save_model("vae", "taef1.safetensors", taesd()))
    print(f"{'panel':>6}{'tiles':>7}{'batch':>7}{'calls':>7}{'total s':>9}{'network s':>11}{'outside':>9}")
    with torch.inference_mode():
        for panel, per_forward in ((args.tile, 1), (args.panel, 1), (args.panel, 2)):
            built = build_diptych(torch.rand(1, panel // 4, panel // 4, 3), panel, panel, "side by side")
            options = DiptychTileOptions(args.tile, args.overlap, "gaussian", per_forward)
            made = tile_diptych(model, text(), None, vae, built.canvas, built.diptych, options)
            zeros = made.latent["samples"]
            tokens = made.tile_latent["samples"].shape[-2] * made.tile_latent["samples"].shape[-1] // 4
            share = None
            for _ in range(args.repeats):
                guider = comfy.samplers.CFGGuider(made.model)
                guider.set_conds(made.positive, made.negative)
                guider.set_cfg(1.0)
                with NetworkClock(model.model.diffusion_model) as inside:
                    total, _ = clock(
                        lambda guider=guider, zeros=zeros, tokens=tokens: guider.sample(
                            torch.randn(zeros.shape),
                            zeros,
                            comfy.samplers.sampler_object("euler"),
                            flow_match_sigmas(tokens, args.steps),
                            disable_pbar=True,
                            seed=0,
                        )
                    )
                outside = 1 - inside.seconds / total
                if share is None or outside < share[0]:
                    share = (outside, total, inside)
            outside, total, inside = share
            print(
                f"{panel:6}{made.tiles:7}{per_forward:7}{inside.calls:7}{total:9.2f}{inside.seconds:11.2f}"
                f"{outside:9.2%}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    overhead_parser = commands.add_parser("overhead")
    overhead_parser.add_argument("--panel", type=int, default=512, help="side in pixels")
    area_parser = commands.add_parser("area")
    area_parser.add_argument("--panels", default="512,1024,2048,4096", help="sides in pixels")
    loop_parser = commands.add_parser("loop")
    loop_parser.add_argument("--panel", type=int, default=896)
    loop_parser.add_argument("--overlap", type=int, default=128)
    loop_parser.add_argument("--steps", type=int, default=1)
    for each in (area_parser, loop_parser):
        each.add_argument("--tile", type=int, default=512)
    for each in (overhead_parser, area_parser, loop_parser):
        each.add_argument("--repeats", type=int, default=2, help="runs of each, of which the fastest counts")
    args = parser.parse_args()
    if args.command is None:
        parser.error("say which: overhead, area or loop")
    {"overhead": overhead, "area": area, "loop": loop}[args.command](args)


if __name__ == "__main__":
    main()
