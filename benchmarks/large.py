"""Memory and progress of very large results, stage by stage: VOSR in one step and DreamSR, with tiny networks.

    python3 dev/host_env.py run -- benchmarks/large.py 2048 4096 [--method VOSR] [--scale 4] [--color wavelet]

Each size runs in a process of its own, after a small run that loads what is loaded once. A picture of SIZE / scale
pixels a side is restored to SIZE x SIZE. For every stage: seconds, and the most memory the process held (resident, read
every few milliseconds) less what it held before, with the picture that went in, in parts of one float32 RGB image of
the result. Target: 2.5 at most, of which the enlarged picture and the result are two. The widths of the networks are
tiny, the autoencoder's is one convolution each way, and everything that goes with the size of the picture is real:
latents of 16 channels, tiles of 512 pixels, a vector of 768 numbers for each of DINOv2's 1024 places in a tile.
Standstill: the longest time between two movements of the node's bar, as much of it as falls into the stage.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _pack import load_pack
from harness.host import start_host
from host_env import find_host

METHODS = ("VOSR", "DreamSR")
STAGES = {
    "VOSR": ("upscale", "build_conditioning", "sample", "decode_around", "align_colors"),
    "DreamSR": ("upscale", "encode_around", "clean_latent", "add_texture", "decode_around", "align_colors"),
}
WARM_UP = 1024
VAE_TILE = 512
VISION_WIDTH = 768
HEADS, HEAD = 2, 128
"""Of FLUX, and the width of one."""
CHANNELS = 16
SAMPLE_SECONDS = 0.004
PAGE = resource.getpagesize()


def resident() -> int:
    """Bytes that the process holds now. Linux."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


class Watch:
    """Memory, seconds and standstills of every stage; "" stands for between the stages. A thread reads the memory."""

    def __init__(self) -> None:
        self.stage, self.peaks, self.seconds, self.stills = "", {"": 0}, {}, {}
        self.over = threading.Event()
        self.began = self.moved = 0.0
        self.still = 0.0
        """The longest one, whatever stages it falls into."""
        self.shown = (-1.0, 0.0)

    def __enter__(self) -> Watch:
        self.began = self.moved = time.monotonic()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        self.thread.join()
        self.stood()

    def run(self) -> None:
        while not self.over.wait(SAMPLE_SECONDS):
            self.peaks[self.stage] = max(self.peaks.get(self.stage, 0), resident())

    def stood(self) -> float:
        """Note how long the bar stands still by now; returns the time."""
        now = time.monotonic()
        self.still = max(self.still, now - self.moved)
        here = now - max(self.moved, self.began)
        self.stills[self.stage] = max(self.stills.get(self.stage, 0.0), here)
        return now

    def enter(self, stage: str) -> float:
        """The stage begins, or goes on, at the time that is returned."""
        self.began = self.stood()
        self.stage = stage
        return self.began

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            outer, began = self.stage, self.enter(name)
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + self.enter(outer) - began

        return run

    def bar(self, value: float, total: float, *_: Any, **__: Any) -> None:
        if (value, total) != self.shown:
            self.moved, self.shown = self.stood(), (value, total)


def vosr(host: Any, vision_width: int) -> Callable[[Any, int, str], Any]:
    """A restoration of an image to a side, by VOSR in one step."""
    from harness.autoencoders import patch_vae
    from harness.checkpoints import dinov2
    from harness.vosr import TinyVOSR
    from realisr.host.vosr.conditioning import EncodeOptions, SquareTiles
    from realisr.host.vosr.restore import VOSRRestoreOptions, restore
    from realisr.host.vosr.vision import load_dinov2

    tiny = TinyVOSR.create(
        host, "large_one_step", latent_channels=CHANNELS, depth=1, context_width=vision_width, has_end_time=True
    )
    model, vae = tiny.load(), patch_vae()
    name = host.save_model("clip_vision", "large_dinov2.safetensors", dinov2(width=vision_width, depth=1))
    vision = load_dinov2(host.models / "clip_vision" / name, num_heads=1)

    def run(image: Any, side: int, color: str) -> Any:
        options = VOSRRestoreOptions(
            side, side, 1, 1, encode=EncodeOptions(vae_tile=VAE_TILE), tiles=SquareTiles(512, 64), color=color
        )
        return restore(model, vae, vision, image, options)

    return run


def dreamsr(host: Any, heads: int) -> Callable[[Any, int, str], Any]:
    """A restoration by DreamSR: one forward with the acceleration LoRA, and one step of texture."""
    import torch

    from harness import checkpoints
    from harness.autoencoders import patch_vae
    from harness.dreamsr import TEXT_WIDTH, control_config, control_weights, load_control, load_flux
    from realisr.host.dreamsr.lora import AccelerationLoRA
    from realisr.host.dreamsr.restore import DreamSR, restore_images, tiles_over

    blocks, width = {"double_blocks": 1, "single_blocks": 1}, heads * HEAD
    flux = checkpoints.flux(7, heads=heads, **blocks, context_width=TEXT_WIDTH, pooled_width=768)
    model = load_flux(host, "large_flux.safetensors", flux)
    config = control_config(layers=1, hidden_size=width)
    control = load_control(host, "large_control.safetensors", control_weights(config))
    vae = patch_vae()
    stem = "transformer.transformer_blocks.0.attn.to_q.lora"
    lora = checkpoints.fill([(f"{stem}_A.weight", (4, width)), (f"{stem}_B.weight", (width, 4))], 9)
    text = [[torch.zeros(1, 5, TEXT_WIDTH), {"pooled_output": torch.zeros(1, 768), "guidance": 3.5}]]
    host.save_model("loras", "large_lora.safetensors", lora)
    method = DreamSR(model, text, control, lora=AccelerationLoRA.load("large_lora.safetensors", 1.0), texture_steps=1)

    def run(image: Any, side: int, color: str) -> Any:
        grid = tiles_over(side, side, 512, 64)
        return restore_images(method, vae, image, (side, side), grid, 1, VAE_TILE, color)

    return run


def one(method: str, side: int, scale: int, color: str, vision_width: int, heads: int) -> None:
    """Child process: one restoration, then a line of JSON."""
    found = find_host()
    assert found is not None, "no ComfyUI here: run `make setup` once, or set COMFYUI_PATH"
    sys.path.insert(0, str(found.comfyui))
    host = start_host(found.comfyui, Path(tempfile.mkdtemp(prefix="realisr-bench-")))
    load_pack()
    import comfy.utils
    import torch

    import realisr.host.dreamsr.restore
    import realisr.host.vosr.restore

    module = {"VOSR": realisr.host.vosr.restore, "DreamSR": realisr.host.dreamsr.restore}[method]
    with torch.inference_mode():
        run = vosr(host, vision_width) if method == "VOSR" else dreamsr(host, heads)
        run(torch.rand(1, WARM_UP // scale, WARM_UP // scale, 3), WARM_UP, color)
        image = torch.rand(1, side // scale, side // scale, 3)
        watch = Watch()
        for name in STAGES[method]:
            setattr(module, name, watch.timed(name, getattr(module, name)))
        comfy.utils.set_progress_bar_global_hook(watch.bar)
        before = resident() - image.nbytes
        with watch:
            result = run(image, side, color)
    assert result.shape == (1, side, side, 3)
    peaks = {name: peak - before for name, peak in watch.peaks.items() if peak}
    whole = {"peaks": peaks, "seconds": watch.seconds, "stills": watch.stills, "still": watch.still}
    whole["image"] = side * side * 12
    print(json.dumps(whole), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="+", help="sides of the result in pixels, multiples of 16")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--color", default="adain", choices=("adain", "wavelet", "none"))
    parser.add_argument("--vision-width", type=int, default=VISION_WIDTH)
    parser.add_argument("--heads", type=int, default=HEADS, help=f"of FLUX, {HEAD} wide each")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.method[0], args.sizes[0], args.scale, args.color, args.vision_width, args.heads)
        return
    print("| method | side | stage | s | standstill s | peak / image |\n| --- | --- | --- | --- | --- | --- |")
    for method in args.method or METHODS:
        for side in args.sizes:
            command = [sys.executable, __file__, str(side), "--one", "--method", method]
            command += ["--scale", str(args.scale), "--color", args.color]
            command += ["--vision-width", str(args.vision_width), "--heads", str(args.heads)]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
            image = found["image"]
            for name in STAGES[method]:
                peak, seconds = found["peaks"].get(name, 0) / image, found["seconds"].get(name, 0.0)
                still = found["stills"].get(name, 0.0)
                print(f"| {method} | {side} | {name} | {seconds:.1f} | {still:.1f} | {peak:.2f} |")
            peak, seconds = max(found["peaks"].values()) / image, sum(found["seconds"].values())
            still = found["still"]
            print(f"| {method} | {side} | **all** | {seconds:.1f} | {still:.1f} | **{peak:.2f}** |", flush=True)


if __name__ == "__main__":
    main()
