"""Restore photos through one ComfyUI or several.

    python scripts/restore.py photos restored
    python scripts/restore.py photos restored --server http://192.168.1.5:8188 --server http://192.168.1.6:8188
    python scripts/restore.py "archive/**/*.jpg" @list.txt restored --workflow vosr_one_step --format jpeg
    python scripts/restore.py photos restored --set "Restoration-CFG Sampler.steps=25" --set 4.model_name=VOSR_1.4B_ms

Sources are folders (with those in them), files, patterns in quotes, and lists: @FILE, or - for standard input, a path
on each line. A photo becomes restored/<its path in the source>.png. One that has its result is left out, so a run that
was interrupted goes on where it was; several may work on one target folder. What became of each photo is kept in
restored/.realisr.

Needs Python and nothing else for PNG files as the server makes them. With Pillow, results keep EXIF data, ICC profile,
orientation and transparency, in other formats too; with tqdm there is a bar. ComfyUI's Python has both.

The workflow is a name from workflows/api, or a file in API form (File > Export (API) in ComfyUI), with one Load Image
and one Save Image node. --set NODE.INPUT=VALUE changes a widget; NODE is an id, a class (RealISR_LoadVOSRModel) or a
title. The server keeps its own copy of uploads and results, in input/restore and where Save Image puts them.

Exit status: 0 every photo has its result; 1 some were set aside; 2 it could not start, or go on; 130 or 143 it was told
to end, and has taken its jobs back.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from restoring import NoPhotos, RestoreError, printable
from restoring.attempt import Recipe
from restoring.graph import DEFAULT_WORKFLOW, read_job, workflow_file, workflow_names
from restoring.host import Host
from restoring.hosts import contact
from restoring.manifest import Manifest
from restoring.pictures import SUFFIX_OF, check_format, pillow
from restoring.progress import progress_for
from restoring.results import write_report
from restoring.run import Outcome, Run, Settings, signals_to
from restoring.sources import Photo, find_photos
from restoring.watching import Arrivals

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


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="+", help="folder, file, pattern in quotes, @LIST, or - for a list")
    parser.add_argument("target", type=Path, help="folder for the results; made if needed")
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
    return parser.parse_intermixed_args(argv)


def addresses(asked: Sequence[str] | None) -> list[str]:
    """URLs of the servers, each once."""
    whole = [address if "://" in address else f"http://{address}" for address in asked or [LOCAL]]
    return list(dict.fromkeys(address.rstrip("/") for address in whole))


def restore(asked: argparse.Namespace) -> Outcome:
    """Everything. Raises RestoreError."""

    def find() -> list[Photo]:
        return find_photos(asked.source, asked.target, asked.recursive)

    job = read_job(workflow_file(asked.workflow), asked.settings, asked.input_node, asked.output_node, asked.preset)
    check_format(asked.format)
    recipe = Recipe(job, asked.timeout, asked.format, asked.quality)
    try:
        photos = find()
    except NoPhotos:
        if not asked.watch:
            raise
        photos = []
    hosts = [Host(url, asked.silence) for url in addresses(asked.server)]
    seen = contact(hosts)
    settings = Settings(asked.jobs, asked.retries, asked.patience, asked.pause, asked.again, asked.watch)
    manifest = Manifest(asked.target)
    progress = progress_for(len(hosts))
    try:
        manifest.sweep()
        run = Run(recipe, photos, asked.target, hosts, manifest, settings, progress)
        arrivals = Arrivals(find, photos, asked.pause, run.events.put, progress.note)
        if asked.watch:
            arrivals.start()
        if pillow() is None:
            progress.note("Pillow is not here: EXIF data, ICC profiles and transparency of photos are not kept")
        try:
            with signals_to(run.stop):
                outcome = run.run(seen)
        finally:
            arrivals.stop()
            if asked.report:
                outcome = run.outcome()
                write_report(asked.report, outcome.rows, summary(outcome))
    finally:
        progress.close()
        manifest.close()
    return outcome


def summary(outcome: Outcome) -> dict[str, int]:
    done = sum(row["state"] == "done" for row in outcome.rows)
    return {"total": outcome.total, "done": done, "failed": outcome.failures, "stopped_by": outcome.stopped}


def main(argv: Sequence[str] | None = None) -> int:
    asked = parse_arguments(argv)
    try:
        outcome = restore(asked)
    except RestoreError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        return 128 + signal.SIGINT
    if outcome.failures:
        print(f"{outcome.failures} of {outcome.total} images failed", file=sys.stderr)
    waiting = sum(row["state"] == "waiting" for row in outcome.rows)
    if outcome.stopped and (waiting or not asked.watch):
        print("interrupted; run it again to go on", file=sys.stderr)
        return 128 + outcome.stopped
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
