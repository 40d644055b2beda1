"""One file, with its arguments inside, of a trained or released VOSR folder.

python scripts/vosr_file.py runs/vosr_0.5b ComfyUI/models/diffusion_models/vosr_0.5b.safetensors

The folder holds args.json and checkpoints/ema_model.safetensors. A training writes such a file by itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from _pack import load_pack

load_pack()
from realisr.training.vosr.weights import export_file  # noqa: E402


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="or such a file")
    parser.add_argument("file", type=Path)
    parser.add_argument("--fp32", action="store_true", help="as trained; without it half precision")
    parser.add_argument("--posterior-mean", action="store_true", help="mark it as trained at t = 1 alone")
    options = parser.parse_args(argv)
    dtype = torch.float32 if options.fp32 else torch.float16
    try:
        path = export_file(options.folder, options.file, dtype, options.posterior_mean)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
