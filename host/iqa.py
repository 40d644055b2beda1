"""Quality metrics on the host's device management: loaded once, moved to the device when used, freed with the rest."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..models.fidelity import Channel, psnr, ssim
from ..services.iqa.kept_scores import KeptScores
from ..services.iqa.metrics import MetricInfo, MetricModule, score
from ..services.iqa.offline import create_network
from ..services.iqa.weights import require_weights

FOLDER = "classifiers"
SUBFOLDER = "pyiqa"

MEMORY_PER_IMAGE = 2 * 1024**3
"""Bytes of the default metrics at their hungriest: 20 crops through a ViT-B/8 (MANIQA)."""
MEMORY_PER_PIXEL = 1024
"""Bytes; every 224-pixel window at stride 32 is laid out in memory (LIQE, 588 bytes per pixel)."""

FIDELITY = {"psnr": psnr, "ssim": ssim}
"""Metrics that are computed without a network, on the CPU in float64."""


def weights_folder() -> Path:
    """Where metric weights are read from: the first `classifiers/pyiqa` there is among the host's model folders."""
    places = [Path(root) / SUBFOLDER for root in folder_paths.get_folder_paths(FOLDER)]
    return next((place for place in places if place.is_dir()), places[0])


def folder_contents(folder: Path) -> Hashable:
    """Changes when a file in the folder is added, removed or replaced."""
    if not folder.is_dir():
        return ()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)


class MetricPatcher(comfy.model_patcher.ModelPatcher):
    """A metric as the host manages it: wholly on the device or not in memory at all.

    Its layers are ordinary ones, which compute only where their weights are. When the host unloads it the weights are
    dropped, from RAM too: reading the file again is quick, and nobody but the score nodes wants them.
    """

    released = False

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        super().load(device_to, lowvram_model_memory, force_patch_weights, full_load=True)

    def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False):
        return 0

    def detach(self, unpatch_all=True):
        model = super().detach(unpatch_all)
        # The host detaches without unpatching when it is about to load the same model again.
        if unpatch_all:
            # Emptied, not deleted: the host walks over its list of loaded models right now.
            model.to("meta")
            self.released = True
        return model


class LoadedMetrics:
    """The metrics in memory by name, each as long as the host keeps it loaded and its files stay the same."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Hashable, MetricPatcher]] = {}

    def load(self, metric: MetricInfo, folder: Path) -> MetricPatcher:
        """The metric's patcher, made anew where the files in the folder are others than they were."""
        files = folder_contents(folder)
        known, patcher = self._kept.get(metric.name, (None, None))
        if patcher is not None and not patcher.released and known == files:
            return patcher
        self._kept.pop(metric.name, None)
        with torch.inference_mode(False), torch.no_grad():
            module = MetricModule(create_network(metric, folder)).eval().requires_grad_(False)
        patcher = MetricPatcher(
            module,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
        self._kept[metric.name] = (files, patcher)
        return patcher


LOADED = LoadedMetrics()
KEPT = KeptScores()


def score_all(images: Sequence[Tensor], metrics: Sequence[MetricInfo], contents: Sequence[str] | None = None) -> Tensor:
    """Scores `[len(images), len(metrics)]` in float64 of images `[H, W, C]`, one image and metric at a time.

    contents: `content_of` the images; then scores that an earlier call made of the same content, metric and files are
    not computed again. Alpha is left out and values are clipped to 0..1. Shows progress and stops between images when
    cancelled. Raises MissingWeights before any work, and what `create_network` and `score` raise.
    """
    return score_each([(image, None) for image in images], metrics, contents=contents)


def score_pairs(
    images: Sequence[Tensor],
    references: Sequence[Tensor],
    metrics: Sequence[MetricInfo],
    channel: Channel = "y",
    crop_border: int = 0,
) -> Tensor:
    """Scores `[len(images), len(metrics)]` in float64 of images against references, both `[H, W, C]` and 8-bit exact.

    channel, crop_border: what PSNR and SSIM look at; networks see whole RGB images, as in papers. Otherwise as
    `score_all`.
    """
    return score_each(list(zip(images, references, strict=True)), metrics, channel, crop_border)


def score_each(
    pairs: Sequence[tuple[Tensor, Tensor | None]],
    metrics: Sequence[MetricInfo],
    channel: Channel = "y",
    crop_border: int = 0,
    contents: Sequence[str] | None = None,
) -> Tensor:
    folder = weights_folder()
    require_weights(metrics, folder)
    files = folder_contents(folder)
    scores = torch.empty(len(pairs), len(metrics), dtype=torch.float64)
    to_score: list[list[int]] = []
    for column, metric in enumerate(metrics):
        kept = [KEPT.recall((metric.name, content, files)) for content in contents or ()] or [None] * len(pairs)
        scores[:, column] = torch.tensor([math.nan if value is None else value for value in kept], dtype=torch.float64)
        to_score.append([row for row, value in enumerate(kept) if value is None])
    bar = comfy.utils.ProgressBar(sum(map(len, to_score)))
    for column, (metric, rows) in enumerate(zip(metrics, to_score, strict=True)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        own = FIDELITY.get(metric.name)
        patcher = None if own or not rows else LOADED.load(metric, folder)
        for row in rows:
            image, reference = pairs[row]
            comfy.model_management.throw_exception_if_processing_interrupted()
            if own is not None and reference is not None:
                value = float(own(planes(image), planes(reference), channel, crop_border))
            else:
                assert patcher is not None
                memory = MEMORY_PER_IMAGE + MEMORY_PER_PIXEL * image.shape[0] * image.shape[1]
                comfy.model_management.load_models_gpu([patcher], memory_required=memory)
                given = [planes(each, patcher.load_device) for each in (image, reference) if each is not None]
                value = score(patcher.model.network, metric, *given)
            scores[row, column] = value
            if contents is not None:
                KEPT.keep((metric.name, contents[row], files), value)
            bar.update(1)
    return scores


def planes(image: Tensor, device: torch.device | None = None) -> Tensor:
    """An image `[H, W, C]` as metrics take it: `[1, 3, H, W]` in float32, alpha left out, clipped to 0..1."""
    return image[None, ..., :3].movedim(-1, 1).to(device=device, dtype=torch.float32).clamp(0, 1)
