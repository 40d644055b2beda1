"""Train a restorer on your photos, on one GPU or many.

python scripts/train.py vicr --config training/configs/vicr.yaml out=runs/vicr
python scripts/train.py vicr --config training/configs/vicr.yaml out=runs/vicr --dry-run   (what it would take)
accelerate launch --config_file training/configs/accelerate/ddp.yaml scripts/train.py vicr --config ...

The same command goes on after Ctrl-C or a crash. Needs the pack's `train` extra. See training/README.md.
"""

from __future__ import annotations

import argparse
import importlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _pack import load_pack

load_pack()
METHODS = {
    "vicr": "training.vicr.method:VICRMethod",
    "dreamsr": "training.dreamsr.method:DreamSRMethod",
    "vosr": "training.vosr.method:VOSRMethod",
    "pure": "training.pure.method:PUREMethod",
}
INSTALL = "pip install '.[train]' (in the pack's folder)"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=sorted(METHODS))
    parser.add_argument("--config", type=Path, required=True, help="the run's YAML file")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings on top of the file's")
    parser.add_argument("--dry-run", action="store_true", help="say what the run would take and write its first batch")
    return parser.parse_intermixed_args(argv)


def load_method(name: str) -> Any:
    """The method's class. Ends the program with the install command where a package is missing."""
    module, _, attribute = METHODS[name].partition(":")
    try:
        return getattr(importlib.import_module(f"realisr.{module}"), attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("realisr"):
            raise
        raise SystemExit(f"training needs {error.name}: {INSTALL}") from error


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    method_type = load_method(options.method)
    from realisr.training.engine.config import read_config

    # torch says so once where bf16 meets a norm whose weights stay in float32, as they should.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    try:
        method = method_type(read_config(options.config, options.settings, method_type.config_type))
        if options.dry_run:
            dry_run(method)
        else:
            train(method)
    except ModuleNotFoundError as error:
        if error.name is None:  # raised by the pack, with the command in its text
            raise SystemExit(f"error: {error}") from error
        raise SystemExit(f"training needs {error.name}: {INSTALL}") from error
    except (ValueError, OSError, ArithmeticError) as error:
        if os.environ.get("REALISR_TRACEBACK"):
            raise
        raise SystemExit(f"error: {error}") from error


def train(method: Any) -> None:
    from realisr.training.engine.engine import Engine

    Engine(method).run()


def dry_run(method: Any) -> None:
    """Print what a run would take, and write its first batch as a picture. Reads no big file."""
    from realisr.training.engine.dry_run import describe, write_first_batch

    for line in describe(method):
        print(line)
    for path in write_first_batch(method):
        print(f"first batch: {path}")


if __name__ == "__main__":
    main()
