"""DreamSR's texture stage in tiles: the share of the time that is spent outside the networks.

    python3 dev/host_env.py run -- benchmarks/dreamsr.py [--heads 8 --steps 4 --side 896]

A FLUX of 1 + 1 blocks and an MM-ControlNet of one, 128 wide a head (FLUX.1 has 24), random weights, tiles of 512 pixels
with a prompt each, one tile a forward. Real networks have 57 and 9 blocks, beside which the rest is so much less.
Target: at most 0.5 %.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from _gpu_networks import TINY, Networks
from gpu import prepare

TILE, OVERLAP = 512, 128


class NetworkClock:
    """Seconds in the forwards of some networks, of which one may call another."""

    def __init__(self, *networks: Any):
        self.seconds, self.inside = 0.0, False
        for network in networks:
            network.forward = self.timed(network.forward)

    def timed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return forward(*args, **kwargs)
            self.inside, began = True, time.perf_counter()
            try:
                return forward(*args, **kwargs)
            finally:
                self.seconds, self.inside = self.seconds + time.perf_counter() - began, False

        return run


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--side", type=int, default=896, help="of the picture in pixels")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    folder = prepare(smoke=True, offload=False)
    from realisr.host.dreamsr.restore import DreamSR, add_texture, tiles_over

    width = 128 * args.heads
    control = {
        "hidden_size": width,
        "layers": 1,
        "text_width": 512,
        "mlp_hidden": 4 * width,
        "context_hidden": 4 * width,
    }
    flux = {**TINY.flux, "heads": args.heads, "context_width": 512}
    networks, cpu = Networks(replace(TINY, flux=flux, control=control), torch.float32, folder), torch.device("cpu")
    model, mm_control = networks.flux(False, cpu), networks.control(cpu)
    grid = tiles_over(args.side, args.side, TILE, OVERLAP)
    prompts = [networks.prompt() for _ in range(len(grid))]
    method = DreamSR(model, networks.prompt(), mm_control, patch_prompts=prompts, tiles_per_batch=1)
    clock = NetworkClock(model.model.diffusion_model, mm_control.network)
    latent = torch.randn(1, 16, args.side // 8, args.side // 8)
    add_texture(replace(method, texture_steps=1), grid, latent, latent, 0)
    print(f"{width} wide, {len(grid)} tiles, {args.steps} steps, {torch.get_num_threads()} CPU threads")
    for _ in range(args.repeats):
        clock.seconds, began = 0.0, time.perf_counter()
        add_texture(replace(method, texture_steps=args.steps), grid, latent, torch.randn_like(latent), 0)
        total = time.perf_counter() - began
        print(f"{total:.2f} s, of which outside of the networks {1 - clock.seconds / total:.2%}", flush=True)


if __name__ == "__main__":
    main()
