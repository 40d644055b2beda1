"""Measure restored images: fidelity to a reference and quality without one, as papers on super-resolution do.

    python scripts/evaluate.py restored --reference originals
    python scripts/evaluate.py vosr dreamsr --reference originals --lq photos --protocol osediff --jobs 2
    python scripts/evaluate.py --restore workflows/api/vosr_one_step.json --lq photos --reference originals
    python scripts/evaluate.py restored --reference originals --compare-with osediff-realsr

Each folder of results is a method, named after it or given as NAME=FOLDER. A result belongs to the reference of its
name. Into --out go per_image.csv (written as it goes: an interrupted run goes on where it was), scores.json, table.md,
trade_off.png, and worst_METHOD.png with the ten worst results.

PSNR and SSIM need torch, NumPy and Pillow. The other metrics are pyiqa's, with weight files on this machine: what is
missing is named in the table with where to get it. Plots need matplotlib. More: docs/evaluate.md
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import restore
from evaluation import plots, published, report
from evaluation.judge import Judge, Settings
from evaluation.pairs import EvaluateError, Pair, check_files, pair_up
from evaluation.protocols import PROTOCOLS
from evaluation.run import fid_of, score_pairs
from evaluation.store import Rows
from evaluation.weights import default_weights
from realisr.services.iqa.metrics import split_names

FEATURES = "fid"
RESTORED = "restored"
RESERVED = {"reference"}
"""Not a method: features of references are kept under this name."""


def method_folders(asked: argparse.Namespace) -> dict[str, Path]:
    """Method -> folder of its results. Restores first what --restore asks for. Raises EvaluateError."""
    folders: dict[str, Path] = {}
    for text in asked.results:
        name, equals, folder = text.partition("=")
        path = Path(folder) if equals and not Path(text).is_dir() else Path(text)
        add_method(folders, name if equals and path != Path(text) else path.resolve().name, path)
    if asked.restore and asked.lq is None:
        raise EvaluateError("--restore needs --lq, the folder of images to restore")
    for workflow in asked.restore:
        target = asked.out / RESTORED / f"{workflow.stem}-{digest_of(workflow, asked.settings)}"
        add_method(folders, workflow.stem, target)
        restore_folder(asked, workflow, target)
    if not folders:
        raise EvaluateError("nothing to evaluate: name a folder of results, or a workflow with --restore and --lq")
    return folders


def add_method(folders: dict[str, Path], name: str, path: Path) -> None:
    if name in folders or name in RESERVED or "/" in name:
        raise EvaluateError(f"'{name}' cannot be the name of a method here, or is one already; use NAME={path}")
    folders[name] = path


def digest_of(workflow: Path, settings: Sequence[str]) -> str:
    """Another for another workflow or settings, whose results must not be taken for these. Raises EvaluateError."""
    if not workflow.is_file():
        raise EvaluateError(f"there is no workflow file {workflow}")
    return hashlib.sha256(workflow.read_bytes() + "\n".join(settings).encode()).hexdigest()[:8]


def restore_folder(asked: argparse.Namespace, workflow: Path, target: Path) -> None:
    """Every LQ image through a running ComfyUI, as scripts/restore.py does it. Raises EvaluateError if any fails."""
    settings = [word for setting in asked.settings for word in ("--set", setting)]
    arguments = [str(asked.lq), str(target), "--workflow", str(workflow), "--server", asked.server, *settings]
    arguments.append("--no-recursive")  # as results are paired
    if status := restore.main(arguments):
        raise EvaluateError(f"restoring with {workflow} stopped (exit status {status}); run it again to go on")


def evaluate(asked: argparse.Namespace) -> report.Report:
    """Everything up to the written files. Raises EvaluateError."""
    protocol = PROTOCOLS[asked.protocol]
    tables = [published.read_table(name) for name in asked.compare_with]
    metrics = tuple(dict.fromkeys(split_names(asked.metrics.lower()))) if asked.metrics else protocol.metrics
    settings = Settings(
        protocol, metrics, asked.weights, device_of(asked.device), asked.out / FEATURES, asked.reference is not None
    )
    folders = method_folders(asked)
    methods = {
        method: pair_up(folder, asked.reference, asked.lq, asked.subset, asked.in_order)
        for method, folder in folders.items()
    }
    for pairs in methods.values():
        check_files(pairs, protocol.center_crop, settings.smallest)
    judge = Judge(settings)
    if not judge.metrics:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in judge.gaps.items())
        raise EvaluateError(f"none of the metrics can be computed here. {reasons}")
    found = report.Report(protocol, judge.metrics, {}, metrics, gaps=judge.gaps, published=tables)
    found.versions = report.versions()
    found.weights = report.weight_hashes(judge.metrics, asked.weights)
    rows = Rows(asked.out, found.columns, row_settings(found), asked.restart)
    try:
        score_pairs(judge, methods, rows, asked.jobs)
    finally:
        rows.close()
    found.scores = {method: rows.of(method, [pair.name for pair in pairs]) for method, pairs in methods.items()}
    if "fid" in judge.metrics:
        found.fid = fids(settings, methods, found)
    draw(asked.out, found, methods)
    report.write(found, asked.out)
    return found


def row_settings(found: report.Report) -> dict[str, object]:
    """What rows depend on besides their files: rows of other settings must not mix with these."""
    return {
        "protocol": vars(found.protocol),
        "metrics": list(found.metrics),
        "weights": dict(found.weights),
        "pyiqa": found.versions["pyiqa"],
    }


def fids(settings: Settings, methods: Mapping[str, Sequence[Pair]], found: report.Report) -> dict[str, float]:
    values = {}
    for method, pairs in methods.items():
        try:
            values[method] = fid_of(settings, method, pairs)
        except ValueError as error:
            found.gaps[f"fid of {method}"] = str(error)
    return values


def draw(folder: Path, found: report.Report, methods: Mapping[str, Sequence[Pair]]) -> None:
    """trade_off.png and a sheet of the worst for each method; what cannot be drawn becomes a gap."""
    metrics = {name: found.metrics[name] for name in found.columns}
    axes = plots.axes_of(metrics)
    if axes is None:
        found.gaps["trade_off.png"] = "it needs a metric of fidelity and one of perception (musiq, clipiqa, niqe, ...)"
    else:
        try:
            plots.plot_trade_off(folder / "trade_off.png", found.scores, metrics, axes)
        except ModuleNotFoundError:
            found.gaps["trade_off.png"] = plots.NO_MATPLOTLIB
    judge = plots.worst_by(metrics)
    if not judge:
        return
    column = found.columns.index(judge)
    for method, scores in found.scores.items():
        worst = plots.worst_of(scores, column, metrics[judge].lower_is_better)
        if not worst:
            continue
        pairs = [methods[method][index] for index in worst]
        captions = [f"{scores.names[index]}: {judge} {scores.values[index, column]:.4f}" for index in worst]
        plots.worst_sheet(folder / f"worst_{method}.png", pairs, captions, found.protocol.center_crop)


def device_of(name: str) -> str:
    """The device to compute on. Raises EvaluateError for one that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise EvaluateError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("1 at least")
    return value


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", metavar="RESULTS", help="folder of restored images, or NAME=FOLDER")
    parser.add_argument("--reference", type=Path, metavar="GT", help="folder of originals")
    parser.add_argument("--lq", type=Path, help="folder of the low-quality images, shown beside the worst results")
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="osediff", help="default: %(default)s")
    parser.add_argument("--metrics", help="instead of the protocol's: pyiqa's names, separated by commas")
    parser.add_argument(
        "--compare-with", action="append", default=[], metavar="TABLE", help="published figures, or a file"
    )
    parser.add_argument(
        "--list", action="store_true", help="list the protocols and published tables, with their sources"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("evaluation"), help="folder for results (default: %(default)s)"
    )
    parser.add_argument("--restart", action="store_true", help="compute anew what is in --out already")
    parser.add_argument("--jobs", type=positive, default=1, help="images at a time, each in a process of its own")
    parser.add_argument("--subset", action="store_true", help="evaluate only what has a result and a reference")
    parser.add_argument("--in-order", action="store_true", help="pair the sorted files, whatever they are called")
    parser.add_argument("--weights", type=Path, default=default_weights(), help="folder of weight files (%(default)s)")
    parser.add_argument("--device", default="auto", help="for metrics with networks: auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--restore", type=Path, action="append", default=[], metavar="WORKFLOW", help="restore --lq first"
    )
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="ComfyUI's address, for --restore")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", dest="settings")
    return parser.parse_intermixed_args(argv)


def print_list() -> None:
    for protocol in PROTOCOLS.values():
        print(f"{protocol.name}: {', '.join(protocol.metrics)}\n  {protocol.source}")
        if protocol.assumed:
            print(f"  Chosen here: {protocol.assumed}")
    for name in published.table_names():
        found = published.read_table(name)
        print(
            f"{name}: {found.title}. {found.source}" + (f" (not here: {found.incomplete})" if found.incomplete else "")
        )


def main(argv: Sequence[str] | None = None) -> int:
    asked = parse_arguments(argv)
    if asked.list:
        print_list()
        return 0
    try:
        found = evaluate(asked)
    except EvaluateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        return 130
    print(report.markdown(found))
    print(f"wrote {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
