"""Make pairs of clean and detail-erased crops for DreamSR's texture stage, by FLUX.1-dev, image to image.

python scripts/make_pairs.py --config training/configs/dreamsr_pairs.yaml out=data/pairs
python scripts/make_pairs.py --config training/configs/dreamsr_pairs.yaml out=data/pairs count=20000 batch=4

Photos need prompts of their crops first: scripts/caption.py --kind dreamsr. Pairs that are there already are left out,
so the same command goes on where it stopped. What failed is told at the end, and the exit status is then 1.
Needs the pack's `train` extra.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from _pack import load_pack

load_pack()
INSTALL = "pip install '.[train]' (in the pack's folder)"
SHOWN = 5


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="the YAML file")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings on top of the file's")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    options = parser.parse_intermixed_args(argv)
    try:
        return make(options)
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: {error}" if error.name is None else f"this needs {error.name}: {INSTALL}") from error
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def make(options: argparse.Namespace) -> int:
    """Exit status."""
    import torch
    from tqdm import tqdm

    from realisr.training.dreamsr.pairs import GaveUp, PairsConfig, Report, make_pairs
    from realisr.training.engine.config import read_config

    config = read_config(options.config, options.settings, PairsConfig)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    report = Report()
    with tqdm(total=config.count, unit="pair") as bar:
        try:
            for report in make_pairs(config, device):
                bar.n = report.made + report.already + len(report.failed)
                bar.set_postfix(failed=len(report.failed), refresh=False)
                bar.refresh()
        except GaveUp as error:
            raise SystemExit(f"error: {error}") from error
    print(f"{report.made} pairs made, {report.already} were there, {len(report.failed)} failed: {config.out}")
    for number, reason in list(report.failed.items())[:SHOWN]:
        print(f"pair {number}: {reason}")
    if len(report.failed) > SHOWN:
        print(f"... and {len(report.failed) - SHOWN} more")
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
