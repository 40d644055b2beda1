"""Live tiles: what the picture of tiles costs while a node samples.

    python3 dev/host_env.py run -- benchmarks/live_tiles.py [--heads 1 --blocks 1 --side 128 --steps 4 --runs 3]

A FLUX with random weights, tiles of 256 pixels, one at a time, under the host's Euler sampler; with the picture and
without it alternating in one process, and the fastest of each counts. Every picture is made into a JPEG on the spot, as
the server does (there in another thread). drawing: the share of the run's seconds that went into pictures, JPEG
included; it is measured inside the run, so that other work on the machine disturbs it less than the ratio.
Target: at most an eighth (12.5 %).
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

from _pack import load_pack  # noqa: E402
from harness.host import start_host  # noqa: E402
from host_env import find_host  # noqa: E402

TILE, OVERLAP = 32, 8
"""In latent cells."""

CONTEXT, POOLED = 64, 32


@dataclass
class Pictures:
    """Stands for the server: takes what the bar is given, and encodes it."""

    count: int = 0

    def __call__(self, value, total, preview=None, **_) -> None:
        if preview is None:
            return
        kind, picture, _ = preview
        picture.save(io.BytesIO(), format=kind, quality=95)
        self.count += 1


def prepare():
    """Import ComfyUI and the pack; on the GPU when there is one."""
    import torch

    host = find_host()
    assert host is not None, "no ComfyUI here: run `make setup` once, or set COMFYUI_PATH"
    sys.path.insert(0, str(host.comfyui))
    made = start_host(host.comfyui, Path(tempfile.mkdtemp(prefix="realisr-bench-")), cpu=not torch.cuda.is_available())
    load_pack()
    return made


def model_of(host, heads: int, blocks: int):
    import nodes

    from harness.checkpoints import flux

    weights = flux(heads=heads, double_blocks=blocks, single_blocks=blocks, context_width=CONTEXT, pooled_width=POOLED)
    name = host.save_model("diffusion_models", "live.safetensors", weights)
    return host.run(nodes.UNETLoader, unet_name=name, weight_dtype="default")[0]


def sample(model, noise, positive, steps: int, live) -> tuple[float, object]:
    """(seconds, latent) of a run, shown by `live` if it is not None."""
    import comfy.samplers
    import torch

    from realisr.host.live_tiles import LIVE

    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    if live is not None:
        guider.model_options = {**guider.model_options, LIVE: live}
    sigmas, euler = torch.linspace(1.0, 0.0, steps + 1), comfy.samplers.sampler_object("euler")
    start = time.perf_counter()
    latent = guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=0).cpu()
    return time.perf_counter() - start, latent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("heads", 1), ("blocks", 1), ("side", 128), ("steps", 4), ("runs", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    host = prepare()

    import comfy.utils
    import torch

    from realisr.host.live_tiles import LiveTiles, previewer_for
    from realisr.host.tiling.sampling import Tiling
    from realisr.models.tiles.grid import TileGrid

    side, pictures = options.side, Pictures()
    grid = TileGrid.fitted((side, side), (TILE, TILE), (OVERLAP, OVERLAP), 2)
    model = Tiling(grid, weights="gaussian", per_forward=1).apply(model_of(host, options.heads, options.blocks))
    noise = torch.randn(1, 16, side, side)
    positive = [[torch.randn(1, 64, CONTEXT), {"pooled_output": torch.randn(1, POOLED)}]]
    photo = torch.rand(1, side * 8, side * 8, 3)
    comfy.utils.set_progress_bar_global_hook(pictures)
    # A network this small is quicker on one thread, on a busy machine by far.
    torch.set_num_threads(1)
    on, off, shares, same = [], [], [], True
    with torch.inference_mode():
        sample(model, noise, positive, 1, None)
        for _ in range(options.runs):
            seconds, plain = sample(model, noise, positive, options.steps, None)
            off.append(seconds)
            live = LiveTiles(previewer_for(model))
            live.start_from(photo, 8)
            seconds, seen = sample(model, noise, positive, options.steps, live)
            on.append(seconds)
            shares.append(live.drawing / seconds)
            same &= torch.equal(plain, seen)
    print(
        f"{len(grid)} tiles, {options.steps} steps, {side * 8} pixels: off {min(off):.2f} s, on {min(on):.2f} s, "
        f"ratio {min(on) / min(off):.3f}; drawing {max(shares):.2%} of the run at most; "
        f"{pictures.count / options.runs:.1f} pictures a run; results equal: {same}"
    )


if __name__ == "__main__":
    main()
