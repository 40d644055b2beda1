"""Pictures of an evaluation: fidelity against perception, and the worst results beside what they should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from realisr.services.iqa.metrics import MetricInfo

from .pairs import Pair, read_pixels
from .store import Scores

FIDELITY = ("psnr", "lpips", "lpips-vgg", "dists", "topiq_fr", "ssim")
PERCEPTION = (
    *("musiq", "clipiqa", "clipiqa+", "maniqa-pipal", "maniqa", "liqe", "topiq_nr"),
    *("niqe", "piqe", "brisque"),
)
WORST = 10
PANEL, MARGIN, LABEL = 320, 8, 20
"""Pixels: longest side of a picture on the sheet, space between two, height of a line of text."""
NO_MATPLOTLIB = "plots need the Python package matplotlib: pip install matplotlib (or '<folder of the pack>[evaluate]')"


def axes_of(metrics: Mapping[str, MetricInfo]) -> tuple[str, str] | None:
    """(fidelity, perception): the first of each kind that was computed; None where one kind is missing."""
    found = [next((name for name in names if name in metrics), None) for names in (FIDELITY, PERCEPTION)]
    fidelity, perception = found
    return (fidelity, perception) if fidelity and perception else None


def plot_trade_off(
    path: Path, scores: Mapping[str, Scores], metrics: Mapping[str, MetricInfo], axes: tuple[str, str]
) -> None:
    """Fidelity to the right, perception upwards, better always away from the origin: a cross for each method's mean.

    Raises ModuleNotFoundError without matplotlib.
    """
    # The object interface alone: pyplot would look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = list(metrics)
    figure = Figure(figsize=(8, 6), dpi=120)
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    for method, found in scores.items():
        x, y = (found.values[:, columns.index(name)] for name in axes)
        (points,) = plot.plot(x, y, ".", alpha=0.25, markersize=4)
        both = np.isfinite(x) & np.isfinite(y)
        if both.any():
            plot.plot(x[both].mean(), y[both].mean(), "P", color=points.get_color(), markersize=11, label=method)
    plot.set_xlabel(label_of(metrics[axes[0]]))
    plot.set_ylabel(label_of(metrics[axes[1]]))
    if metrics[axes[0]].lower_is_better:
        plot.invert_xaxis()
    if metrics[axes[1]].lower_is_better:
        plot.invert_yaxis()
    plot.set_title("Fidelity against perception: crosses are means, dots are images")
    plot.grid(alpha=0.3)
    plot.legend()
    figure.tight_layout()
    figure.savefig(path)


def label_of(metric: MetricInfo) -> str:
    return f"{metric.name} ({'lower' if metric.lower_is_better else 'higher'} is better)"


def worst_by(metrics: Mapping[str, MetricInfo]) -> str:
    """The metric that says which results are the worst: fidelity first."""
    return next((name for name in (*FIDELITY, *PERCEPTION) if name in metrics), next(iter(metrics), ""))


def worst_of(scores: Scores, column: int, lower_is_better: bool, count: int = WORST) -> list[int]:
    """Positions of the worst images in a metric, the worst first; those it refused are left out."""
    values = scores.values[:, column] * (-1 if lower_is_better else 1)
    return [int(index) for index in np.argsort(values, kind="stable") if np.isfinite(values[index])][:count]


def worst_sheet(path: Path, pairs: Sequence[Pair], captions: Sequence[str], center_crop: int = 0) -> None:
    """Rows of LQ, result and reference, as far as there are such, each fitted to PANEL pixels, with a caption."""
    kinds = [kind for kind in ("lq", "result", "reference") if any(getattr(pair, kind) is not None for pair in pairs)]
    width = MARGIN + len(kinds) * (PANEL + MARGIN)
    rows = []
    for pair, caption in zip(pairs, captions, strict=True):
        files = {kind: getattr(pair, kind) for kind in kinds}
        panels = [
            None if file is None else fitted(read_pixels(file, 0 if kind == "lq" else center_crop))
            for kind, file in files.items()
        ]
        height = LABEL + max(panel.height for panel in panels if panel is not None) + MARGIN
        row = Image.new("RGB", (width, height), "white")
        ImageDraw.Draw(row).text((MARGIN, 3), caption, "black", font=ImageFont.load_default(13))
        for index, panel in enumerate(panels):
            if panel is not None:
                row.paste(panel, (MARGIN + index * (PANEL + MARGIN), LABEL))
        rows.append(row)
    sheet = Image.new("RGB", (width, LABEL + sum(row.height for row in rows)), "white")
    for index, kind in enumerate(kinds):
        ImageDraw.Draw(sheet).text(
            (MARGIN + index * (PANEL + MARGIN), 3), kind, "black", font=ImageFont.load_default(13)
        )
    top = LABEL
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(path)


def fitted(pixels: np.ndarray) -> Image.Image:
    """The whole image with its longest side at PANEL pixels: small ones are enlarged without smoothing."""
    image = Image.fromarray(pixels)
    scale = PANEL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
