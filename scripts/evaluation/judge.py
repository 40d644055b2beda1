"""Scores of one pair after another: the metrics that can be computed here, and why the others cannot."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from realisr.models.fidelity import WINDOW, psnr, ssim
from realisr.services.iqa.metrics import MetricInfo, MetricModule, score
from realisr.services.iqa.offline import create_network
from realisr.services.iqa.reference import FID, OWN_METRICS, find_metric

from .fid import features
from .pairs import EvaluateError, Pair, file_stamp, read_pixels
from .protocols import Protocol

OWN = {"psnr": psnr, "ssim": ssim}
assert OWN.keys() == OWN_METRICS.keys()


@dataclass(frozen=True)
class Settings:
    """What every score depends on, and where files are. Travels to other processes."""

    protocol: Protocol
    metrics: tuple[str, ...]
    weights: Path
    """Folder of the metrics' weight files."""
    device: str
    features: Path
    """Folder for what FID needs of each image."""
    has_reference: bool

    @property
    def smallest(self) -> int:
        """Least side in pixels that every metric without a network can work with."""
        own = any(name in OWN for name in self.metrics)
        return 2 * self.protocol.crop_border + WINDOW if own else 1


@dataclass
class Row:
    """Scores of one result."""

    method: str
    pair: Pair
    scores: dict[str, float] = field(default_factory=dict)
    """By metric; NaN where the metric refuses the image."""
    note: str = ""
    """Why a metric has refused."""
    error: str = ""
    """Why there is no score at all; names the file."""


class Judge:
    """The metrics, loaded.

    gaps: metric -> why it cannot be computed. Raises EvaluateError for a name that is no metric.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.gaps: dict[str, str] = {}
        self.metrics: dict[str, MetricInfo] = {}
        self.networks: dict[str, Any] = {}
        for name in settings.metrics:
            reason = self._add(name)
            if reason:
                self.gaps[name] = reason

    def _add(self, name: str) -> str:
        """Load one metric; returns why it cannot be."""
        try:
            metric = find_metric(name)
        except ImportError as error:
            return f"{error}"
        except ValueError as error:
            raise EvaluateError(str(error)) from error
        if (metric.needs_reference or name == FID) and not self.settings.has_reference:
            return "it compares with a reference, and there is no --reference"
        if name not in OWN:
            border = self.settings.protocol.crop_border
            options = {"crop_border": border} if metric.architecture == "NIQE" and border else {}
            try:
                network = create_network(metric, self.settings.weights, **options)
            except (ValueError, ImportError) as error:
                return str(error)
            module = MetricModule(network).to(self.settings.device).eval()
            self.networks[name] = module.network.net.model if name == FID else module.network
        self.metrics[name] = metric
        return ""

    @torch.inference_mode()
    def row(self, method: str, pair: Pair) -> Row:
        """Scores of one result. A file that cannot be read is the row's error."""
        row = Row(method, pair)
        try:
            image = read_pixels(pair.result, self.settings.protocol.center_crop)
            reference = None
            if pair.reference is not None:
                reference = read_pixels(pair.reference, self.settings.protocol.center_crop)
        except EvaluateError as error:
            row.error = str(error)
            return row
        if FID in self.metrics:
            assert reference is not None and pair.reference is not None
            self._keep_features(method, pair.name, pair.result, image)
            self._keep_features("reference", pair.name, pair.reference, reference)
        tensors = [planes(each) for each in (image, reference) if each is not None]
        notes = []
        for name, metric in self.metrics.items():
            if name == FID:
                continue
            try:
                row.scores[name] = self._score(metric, tensors)
            except ValueError as error:
                row.scores[name] = math.nan
                notes.append(str(error))
        row.note = " ".join(" ".join(notes).split())
        return row

    def _score(self, metric: MetricInfo, tensors: Sequence[Tensor]) -> float:
        protocol = self.settings.protocol
        if metric.name in OWN:
            image, reference = tensors
            return float(OWN[metric.name](image, reference, protocol.channel, protocol.crop_border))
        given = [each.to(self.settings.device) for each in (tensors if metric.needs_reference else tensors[:1])]
        return score(self.networks[metric.name], metric, *given)

    def _keep_features(self, method: str, name: str, path: Path, pixels: np.ndarray) -> None:
        target = features_file(self.settings.features, method, name, path)
        if target.is_file():
            return
        found = features(
            self.networks[FID], pixels, self.settings.protocol.fid_patch, torch.device(self.settings.device)
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.save(file, found)
        partial.replace(target)


def features_file(folder: Path, method: str, name: str, image: Path) -> Path:
    """Where the features of an image are kept; another file when the image is replaced."""
    return folder / method / f"{name}.{file_stamp(image)}.npy"


def planes(pixels: np.ndarray) -> Tensor:
    """uint8 `[H, W, 3]` -> float32 `[1, 3, H, W]` in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).movedim(-1, 0)[None].float() / 255
