"""Restore photos through one ComfyUI or several.

    python scripts/restore.py photos restored
    python scripts/restore.py photos restored --server http://192.168.1.5:8188 --server http://192.168.1.6:8188
    python scripts/restore.py "archive/**/*.jpg" @list.txt restored --workflow vosr_one_step --format jpeg
    python scripts/restore.py photos restored --set "Restoration-CFG Sampler.steps=25" --set 4.model_name=VOSR_1.4B_ms
    python scripts/restore.py s3://bucket/photos s3://bucket/restored --engine ray --address auto --comfyui /opt/ComfyUI

Sources are folders (with those in them), files, patterns in quotes, URLs (s3://, gs://, ...), and lists: @FILE, or -
for standard input, a path or URL on each line. A photo becomes restored/<its path in the source>.png. One that has its
result is left out, so a run that was interrupted goes on where it was; several may work on one target folder. What
became of each photo is kept in restored/.realisr, or for a URL on this machine (--manifest says where).

Needs Python and nothing else for PNG files as the server makes them. With Pillow, results keep EXIF data, ICC profile,
orientation and transparency, in other formats too; with tqdm there is a bar. ComfyUI's Python has both. URLs need
fsspec, and --engine ray needs Ray.

The workflow is a name from workflows/api, or a file in API form (File > Export (API) in ComfyUI), with one Load Image
and one Save Image node. --set NODE.INPUT=VALUE changes a widget; NODE is an id, a class (RealISR_LoadVOSRModel) or a
title. The server keeps its own copy of uploads and results, in input/restore and where Save Image puts them.

Exit status: 0 every photo has its result; 1 some were set aside; 2 it could not start, or go on; 130 or 143 it was told
to end, and has taken its jobs back.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from restoring import NoPhotos, RestoreError, printable
from restoring.arguments import LOCAL, parse_arguments
from restoring.attempt import Perform, Recipe, Worker
from restoring.graph import read_job, workflow_file
from restoring.host import Host
from restoring.hosts import Seen, contact
from restoring.ledger import Ledger, Outcome
from restoring.manifest import Manifest
from restoring.pictures import check_format, pillow
from restoring.progress import progress_for
from restoring.results import write_report
from restoring.run import Run, Settings
from restoring.signals import signals_to
from restoring.sources import Photo, find_photos
from restoring.target import Target, target_for
from restoring.watching import Arrivals


@dataclass
class Engine:
    """Who restores: hosts by their names, those that answered already, and how they are made to (None: over HTTP).

    demand: is told again and again how many photos are left.
    """

    hosts: Mapping[str, Any]
    seen: Sequence[Seen] = ()
    perform: Perform | None = None
    demand: Callable[[int], None] = lambda photos: None


def addresses(asked: Sequence[str] | None) -> list[str]:
    """URLs of the servers, each once."""
    whole = [address if "://" in address else f"http://{address}" for address in asked or [LOCAL]]
    return list(dict.fromkeys(address.rstrip("/") for address in whole))


@contextlib.contextmanager
def engine_of(asked: argparse.Namespace, recipe: Recipe, target: Target) -> Iterator[Engine]:
    """The engine that was asked for, until the end of the run. Raises RestoreError."""
    if asked.engine == "ray":
        from restoring.cluster import Wishes, cluster

        servers = addresses(asked.server) if asked.server else []
        given = {name: value for name in ("gpus", "cpus") if (value := getattr(asked, name)) is not None}
        wishes = Wishes(servers, asked.comfyui or "", asked.hosts, jobs=asked.jobs, silence=asked.silence, **given)
        with cluster(asked.address, wishes, recipe, target) as made:
            yield Engine(made.hosts, (), made.perform, made.demand)
        return
    hosts = [Host(url, asked.silence) for url in addresses(asked.server)]
    seen = contact(hosts)
    yield Engine({host.url: host for host in hosts}, seen)


def restore(asked: argparse.Namespace) -> Outcome:
    """Everything. Raises RestoreError."""

    def find() -> list[Photo]:
        return find_photos(asked.source, asked.target, asked.recursive)

    job = read_job(workflow_file(asked.workflow), asked.settings, asked.input_node, asked.output_node, asked.preset)
    check_format(asked.format)
    recipe = Recipe(job, asked.timeout, asked.format, asked.quality)
    target = target_for(asked.target, asked.manifest)
    scores = scores_of(asked)
    try:
        photos = find()
    except NoPhotos:
        if not asked.watch:
            raise
        photos = []
    settings = Settings(asked.jobs, asked.retries, asked.patience, asked.pause, asked.watch)
    with engine_of(asked, recipe, target) as engine, contextlib.ExitStack() as stack:
        manifest = Manifest(target)
        stack.callback(manifest.close)
        progress = progress_for(len(engine.hosts))
        stack.callback(progress.close)
        manifest.sweep()
        ledger = Ledger(recipe, target, manifest, progress, asked.again)
        worker = Worker(recipe, manifest, engine.hosts, engine.perform)
        run = Run(worker, ledger, photos, settings, engine.demand)
        arrivals = Arrivals(find, photos, asked.pause, run.events.put, progress.note)
        if asked.watch:
            arrivals.start()
        if not target.at_once:
            progress.note(f"what becomes of each photo is kept in {manifest.path}")
        if pillow() is None:
            progress.note("Pillow is not here: EXIF data, ICC profiles and transparency of photos are not kept")
        try:
            with signals_to(run.stop):
                outcome = run.run(engine.seen)
        finally:
            arrivals.stop()
            if asked.report:
                outcome = run.outcome()
                write_report(asked.report, outcome.rows, summary(outcome))
    if scores is not None and not outcome.stopped:
        gaps = scores.add(outcome.rows, target)
        write_report(asked.report, outcome.rows, {**summary(outcome), "scores": gaps})
    return outcome


def scores_of(asked: argparse.Namespace) -> Any:
    """What measures results, loaded before anything is restored; None where nothing is to be measured."""
    if not asked.scores:
        return None
    from restoring.scores import Scores

    return Scores(asked.scores, asked.reference, asked.weights)


def summary(outcome: Outcome) -> dict[str, Any]:
    done = sum(row["state"] == "done" for row in outcome.rows)
    return {"total": outcome.total, "done": done, "failed": outcome.failures, "stopped_by": outcome.stopped}


def main(argv: Sequence[str] | None = None) -> int:
    asked = parse_arguments(argv, __doc__ or "")
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
