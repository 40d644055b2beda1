"""What training does, method by method, on tiny networks and real photos, in minutes on one core.

    python3 dev/host_env.py run -- benchmarks/training.py vicr [options]

Each method is a module `training_<method>.py` beside this file, with a docstring that says what is measured,
`add_arguments(parser)` and `run(options)`, which prints Markdown for RESULTS.md.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from _pack import load_pack  # noqa: E402

load_pack()


def methods() -> list[str]:
    """Those that have a module here."""
    found = Path(__file__).parent.glob("training_*.py")
    return sorted(path.stem.removeprefix("training_") for path in found if path.stem != "training_photos")


def main(argv: Sequence[str] | None = None) -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    commands = parser.add_subparsers(dest="method", required=True)
    modules = {name: importlib.import_module(f"training_{name}") for name in methods()}
    for name, module in modules.items():
        command = commands.add_parser(
            name, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    modules[options.method].run(options)
    print(f"\n{time.monotonic() - started:.0f} s in all, {options.threads} thread(s)")


if __name__ == "__main__":
    main()
