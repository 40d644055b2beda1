"""Quality against a reference: PSNR, SSIM, LPIPS, DISTS, ... of images whose original is at hand."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io
from torch import Tensor

from ..host.images import checked_image
from ..host.iqa import score_pairs, weights_folder
from ..models.fidelity import WINDOW, Channel
from ..models.image import to_bytes
from ..services.iqa.reference import parse_reference_metrics
from ..services.iqa.weights import require_weights
from .quality import CATEGORY
from .score_table import ScoreTable, Section

NAME = "Evaluate Against Reference"
CHANNELS: dict[str, Channel] = {"Y of YCbCr": "y", "RGB": "rgb"}
assert set(CHANNELS.values()) == set(get_args(Channel))


def as_saved(image: Tensor, name: str) -> Tensor:
    """The images `[B, H, W, 3]` at the 8-bit levels that a file would hold: what papers measure."""
    return to_bytes(checked_image(image, f"{NAME} ({name}): ")[..., :3]).float() / 255


def matched(images: Tensor, reference: Tensor, name: str, crop_border: int) -> Tensor:
    """The reference of each image. Raises ValueError where the sizes or numbers do not fit."""
    if images.shape[1:3] != reference.shape[1:3]:
        (height, width), (wanted_height, wanted_width) = images.shape[1:3], reference.shape[1:3]
        raise ValueError(
            f"{NAME}: {name} are {width} x {height} and the reference is {wanted_width} x {wanted_height} pixels. "
            "Restore to the reference's size, or enlarge with Upscale for Restoration: nothing is resized here."
        )
    if reference.shape[0] not in (1, images.shape[0]):
        raise ValueError(
            f"{NAME}: {images.shape[0]} {name} and {reference.shape[0]} references. Give one reference for all, or one "
            "for each."
        )
    if min(images.shape[1:3]) < 2 * crop_border + WINDOW:
        raise ValueError(
            f"{NAME}: with crop_border {crop_border} nothing to compare is left of {images.shape[2]} x "
            f"{images.shape[1]} pixels; {WINDOW} on each side are needed."
        )
    return reference.expand(images.shape[0], -1, -1, -1)


class EvaluateAgainstReference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_EvaluateAgainstReference",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Measures how close images come to their original: PSNR and SSIM, which need no file, and LPIPS, DISTS "
                "and others of pyiqa. Computed on 8-bit values as papers do. Shows a table on the node, and the gain "
                "over a baseline. Alpha is left out."
            ),
            search_aliases=[
                "psnr",
                "ssim",
                "lpips",
                "dists",
                "fidelity",
                "compare",
                "reference",
                "metric",
                "benchmark",
            ],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Image or batch to measure, of the reference's size."),
                io.Image.Input("reference", tooltip="The original: one for all images, or one for each."),
                io.String.Input(
                    "metrics",
                    default="psnr, ssim",
                    tooltip=(
                        "Names separated by commas. psnr and ssim need no file and no package. Others are pyiqa's: "
                        "lpips, lpips-vgg, dists, topiq_fr, ... Weights are read from models/classifiers/pyiqa."
                    ),
                ),
                io.Combo.Input(
                    "channel",
                    options=list(CHANNELS),
                    default="Y of YCbCr",
                    tooltip=(
                        "What psnr and ssim are computed on. Papers on super-resolution use luma in studio range, 16 "
                        "to 235; RGB gives lower figures. Other metrics always see RGB."
                    ),
                ),
                io.Int.Input(
                    "crop_border",
                    default=0,
                    min=0,
                    max=256,
                    advanced=True,
                    tooltip=(
                        "Pixels left out at each border for psnr and ssim. OSEDiff and most later papers: 0; SeeSR and "
                        "older papers at x4: 4."
                    ),
                ),
                io.Image.Input(
                    "baseline",
                    optional=True,
                    tooltip="What to compare with, such as a bicubic enlargement: the table then shows the gain.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="The scores as text, a line per image."),
                io.Float.Output(
                    display_name="scores",
                    is_output_list=True,
                    tooltip="The scores as a list: all metrics of the first image, then of the second, and so on.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, metrics: str | None = None):
        if metrics is None:
            return True
        try:
            require_weights(parse_reference_metrics(metrics), weights_folder())
        except (ValueError, ImportError) as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, images, reference, metrics: str, channel: str, crop_border: int, baseline: Any = None
    ) -> io.NodeOutput:
        chosen = parse_reference_metrics(metrics)
        originals = as_saved(reference, "reference")
        given = {"images": as_saved(images, "images")}
        if baseline is not None:
            given["baseline"] = as_saved(baseline, "baseline")
            if given["baseline"].shape[0] != given["images"].shape[0]:
                raise ValueError(
                    f"{NAME}: {given['images'].shape[0]} images and {given['baseline'].shape[0]} in the baseline. "
                    "The gain is that of each image over its own baseline."
                )
        pairs = {name: matched(batch, originals, name, crop_border) for name, batch in given.items()}
        scores = {
            name: score_pairs(list(batch), list(pairs[name]), chosen, CHANNELS[channel], crop_border)
            for name, batch in given.items()
        }
        table = ScoreTable(chosen, sections(scores))
        return io.NodeOutput(table.text(), scores["images"].flatten().tolist(), ui=table.ui())


def sections(scores: dict[str, Tensor]) -> list[Section]:
    """One table of the images, or three: images, baseline and what the first gain over the second."""
    if "baseline" not in scores:
        return [Section("", scores["images"])]
    gain = scores["images"] - scores["baseline"]
    return [*(Section(name, values) for name, values in scores.items()), Section("images minus baseline", gain)]


NODES = [EvaluateAgainstReference]
