"""What scripts/restore.py can be told."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .graph import DEFAULT_WORKFLOW, workflow_names
from .pictures import SUFFIX_OF

LOCAL = "http://127.0.0.1:8188"


def number(least: float, kind: type = float, most: float = float("inf")):
    """An argument's type: a number within bounds."""

    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected {least:g} or more" + (f", to {most:g}" if most < 1e9 else ""))
        return value

    parse.__name__ = "number"
    return parse


def parse_arguments(argv: Sequence[str] | None, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="+", help="folder, file, pattern in quotes, URL, @LIST, or - for a list")
    parser.add_argument("target", help="folder or URL for the results; made if needed")
    parser.add_argument("--server", action="append", help=f"address of ComfyUI, may be repeated (default: {LOCAL})")
    parser.add_argument(
        "--workflow", default=str(DEFAULT_WORKFLOW), help=f"API file, or {', '.join(workflow_names())} (VOSR nano)"
    )
    parser.add_argument("--preset", default="", help="faithful, balanced or creative, in nodes that have presets")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", dest="settings")
    parser.add_argument("--input-node", default="LoadImage", help="which Load Image, if there are several")
    parser.add_argument("--output-node", default="SaveImage", help="which Save Image, if there are several")
    parser.add_argument("--format", choices=list(SUFFIX_OF), default="png", help="of results; tiff has 16 bits")
    parser.add_argument("--quality", type=number(1, int, 100), default=95, help="of JPEG and WebP (100: lossless WebP)")
    parser.add_argument(
        "--recursive", action=argparse.BooleanOptionalAction, default=True, help="folders in folders too"
    )
    parser.add_argument("--watch", action="store_true", help="go on: restore what comes into the sources; Ctrl-C ends")
    parser.add_argument("--again", action="store_true", help="restore what has its result, too")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write JSON on every photo: host, seconds, seed")
    add_scores(parser)
    parser.add_argument(
        "--manifest", type=Path, metavar="FOLDER", help="where it is kept what became of each photo (TARGET/.realisr)"
    )
    parser.add_argument("--jobs", type=number(1, int), default=2, help="photos at a time on each server (2)")
    parser.add_argument("--retries", type=number(1, int), default=3, help="failures before a photo is set aside (3)")
    parser.add_argument(
        "--timeout", type=number(0), default=3600, help="longest time for one image to wait and to run, in seconds"
    )
    parser.add_argument(
        "--silence", type=number(0.1), default=60, help="a server that is silent for so many seconds is gone (60)"
    )
    parser.add_argument(
        "--patience", type=number(0), default=300, help="seconds to wait while no server is there (300)"
    )
    parser.add_argument(
        "--pause", type=number(0.05), default=5, help="seconds between looks at servers and folders (5)"
    )
    add_cluster(parser)
    asked = parser.parse_intermixed_args(argv)
    if asked.scores and not asked.report:
        parser.error("--scores needs --report FILE, where they go")
    started = any(given is not None for given in (asked.comfyui, asked.hosts, asked.gpus, asked.cpus))
    if asked.engine == "threads" and (started or asked.address is not None):
        parser.error("--comfyui, --address, --hosts, --gpus and --cpus are for --engine ray")
    if asked.comfyui and asked.server:
        parser.error("--comfyui starts ComfyUI, --server takes one that runs: name either")
    if started and asked.server:
        parser.error("--hosts, --gpus and --cpus are for what --comfyui starts")
    return asked


def add_scores(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scores", default="", metavar="METRICS", help="of results, into the report: musiq,clipiqa,..."
    )
    parser.add_argument("--reference", type=Path, metavar="FOLDER", help="of originals, for --scores psnr,ssim,lpips")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="with the weight files of --scores")


def add_cluster(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many machines, with Ray (docs/scale.md)")
    group.add_argument("--engine", choices=["threads", "ray"], default="threads", help="who does it (threads)")
    group.add_argument("--address", help="of the Ray cluster: auto, HOST:6379, ray://HOST:10001 (default: one here)")
    group.add_argument(
        "--comfyui", metavar="FOLDER", help="each host starts its own: its folder, or a command with {port} in it"
    )
    group.add_argument("--hosts", type=number(1, int), help="most that are started (default: what the cluster holds)")
    group.add_argument("--gpus", type=number(0), default=None, help="of each one that is started (1; 0 for CPU)")
    group.add_argument("--cpus", type=number(0), default=None, help="of each one that is started (1)")
