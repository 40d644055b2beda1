"""Precision: every method in every precision under every flag of ComfyUI's that touches numbers, against float32.

    python3 dev/host_env.py run -- benchmarks/precision.py [--flags=--fast,--cpu-vae]

Small random networks in the workflows as shipped, on real servers. A row per flag and precision of the weights: per
method the root mean square of the difference from the picture in float32 without a flag, in units of that picture's
standard deviation. PURE draws the likeliest token each time; once one differs, so does all that follows, and its figure
says how different other pictures of that network are. Exit status 1 when a picture is not finite or beyond its limit
(tests/harness/precision.py).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

from _pack import load_pack  # noqa: E402
from comfy_server import ComfyServer, PromptError  # noqa: E402
from host_env import find_host  # noqa: E402

FLAGS = (
    "",
    "--cpu-vae",
    "--fast",
    "--use-pytorch-cross-attention",
    "--use-split-cross-attention",
    "--use-quad-cross-attention",
    "--force-upcast-attention",
    "--fp16-intermediates",
    "--fp16-vae",
    "--bf16-vae",
    "--fp16-unet",
    "--bf16-unet",
    "--fp8_e4m3fn-unet",
)

FREE = ("PURE",)
"""Methods whose pictures may differ as far as they like: tokens are drawn."""

LOWER = {"--fp16-vae": "fp16", "--bf16-vae": "bf16", "--fp16-intermediates": "fp16"}
LOWER |= {"--fp16-unet": "fp16", "--bf16-unet": "bf16", "--fp8_e4m3fn-unet": "fp8_e4m3fn"}
"""Flags that lower the precision, and the precision whose limit then holds at least."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flags", default=",".join(FLAGS), help="with commas between them; an empty one is none")
    asked = parser.parse_args(argv)
    load_pack()
    from harness.methods import METHODS, graphs, save_files
    from harness.precision import LIMITS, WEIGHTS, distance, greedy, in_precision, save_stored_files, unrounded

    host = find_host()
    assert host is not None, "no ComfyUI here: run `make setup` once, or set COMFYUI_PATH"
    nodes = {"realisr": ROOT, "realisr_test_nodes": ROOT / "tests" / "test_nodes"}
    os.environ["OMP_NUM_THREADS"] = "1"
    exact, bad = {}, []
    print("| flag | weights |", " | ".join(METHODS), "|", flush=True)
    flags = list(dict.fromkeys(["", *asked.flags.split(",")]))
    for flag in flags:
        with tempfile.TemporaryDirectory(prefix="realisr-precision-") as folder:
            server = ComfyServer(host, Path(folder), nodes, tuple(filter(None, [flag])))
            with server:
                save_files(server.models)
                save_stored_files(server.models)
                for weights in WEIGHTS:
                    cells = []
                    for method, plain in graphs(server.client).items():
                        graph = in_precision(greedy(plain), weights)
                        if graph is None:
                            cells.append("not offered")
                            continue
                        try:
                            picture = unrounded(server, graph)
                        except PromptError as error:
                            cells.append(f"fails: {error.exception_message[:80]}")
                            bad.append(f"{flag} {weights} {method}: {error}")
                            continue
                        found = distance(picture, exact.setdefault(method, picture))
                        limit = max(LIMITS[weights], LIMITS[LOWER.get(flag, weights)])
                        if found == float("inf") or (found > limit and method not in FREE):
                            bad.append(f"{flag} {weights} {method}: {found:.2g}")
                        cells.append(f"{found:.1e}" if found else "0")
                    print(f"| {flag or 'none'} | {weights} |", " | ".join(cells), "|", flush=True)
    for line in bad:
        print("BEYOND ITS LIMIT:", line)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
