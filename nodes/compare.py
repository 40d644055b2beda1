"""Several methods on one photo, and any results side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io
from comfy_execution.graph import DynamicPrompt
from comfy_execution.graph_utils import GraphBuilder

from ..host.compare.branches import METHODS, PHOTO, UPSCALE_MODEL, make_branch, obstacles
from ..host.compare.watch import start_watch, stop_watch
from ..host.graph_expansion import copy_nodes, input_link
from ..host.images import checked_image
from ..host.iqa import score_all
from ..host.preview_files import save_preview
from ..models.compare.places import most_different, parse_places
from ..models.compare.sheet import Entry, draw_sheet
from ..models.image import resize
from ..services.iqa.metrics import parse_metrics
from .inputs import error_of
from .quality import metrics_error
from .sockets import ComparisonSocket

CATEGORY = "RealISR/Quality"
ALIASES = ["compare", "comparison", "contact sheet", "side by side", "benchmark", "grid", "slider", "which method"]
NAME, SHEET = "Compare Methods", "Compare Sheet"
BRANCH_ID, END_ID, RESULTS_ID = "RealISR_CompareBranch", "RealISR_CompareEnd", "RealISR_CompareResults"
NO_MODEL = "none"
MAX_IMAGES = 24


class CompareMethods(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_CompareMethods",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Restores one photo with every method that is switched on, one after the other, each as the pack's own "
                "workflow does it. A method whose files are not there becomes a card that names them. Seconds and peak "
                "memory of each are measured. Connect the results to Compare Sheet."
            ),
            search_aliases=ALIASES,
            enable_expand=True,
            inputs=[
                io.Image.Input("image", tooltip="One photo, as it came. Alpha is left out."),
                io.Float.Input(
                    "scale", default=2.0, min=1.0, max=8.0, step=0.25, round=0.001, tooltip="Enlargement of both sides."
                ),
                *(io.Boolean.Input(name, default=True, tooltip=text) for name, text in TOGGLES.items()),
                io.Combo.Input(
                    UPSCALE_MODEL,
                    options=[NO_MODEL, *folder_paths.get_filename_list("upscale_models")],
                    default=NO_MODEL,
                    tooltip="One of models/upscale_models (ESRGAN, SwinIR, ...) to compare with, at its own factor.",
                ),
                io.Int.Input(
                    "seed", default=42, min=0, max=2**64 - 1, control_after_generate=False, tooltip="For every method."
                ),
                io.String.Input(
                    "prompt",
                    default="A sharp, detailed photograph.",
                    multiline=True,
                    tooltip="What the photo shows, for the methods that read one (VICR, DreamSR).",
                ),
            ],
            outputs=[
                ComparisonSocket.Output(display_name="results", tooltip="The results in order, for Compare Sheet.")
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def validate_inputs(cls, upscale_model: str = NO_MODEL):
        """A model that is gone becomes a card like any missing file."""
        return True

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        scale: float,
        bicubic: bool,
        vosr_nano: bool,
        vosr: bool,
        vicr: bool,
        dreamsr: bool,
        pure: bool,
        upscale_model: str,
        seed: int,
        prompt: str,
    ) -> io.NodeOutput:
        if len(checked_image(image, f"{NAME}: ")) != 1:
            raise ValueError(f"{NAME} takes one photo and got a batch of {len(image)}. Take one with ImageFromBatch.")
        switches = (bicubic, vosr_nano, vosr, vicr, dreamsr, pure)
        link = photo_link(cls)
        names = [method.name for method, on in zip(METHODS, switches, strict=True) if on]
        names += [UPSCALE_MODEL] if upscale_model != NO_MODEL else []
        if not names:
            raise ValueError(f"{NAME}: every method is switched off. Switch one on.")
        builder = GraphBuilder()
        results = builder.node(RESULTS_ID, id="results")
        for name in names:
            branch = builder.node(BRANCH_ID, id=name, image=link, method=name, scale=scale, seed=seed)
            # Only where they matter: a branch that does not read them need not run again when they change.
            branch.set_input("prompt", prompt if name in READ_PROMPT else "")
            branch.set_input(UPSCALE_MODEL, upscale_model if name == UPSCALE_MODEL else NO_MODEL)
            results.set_input(name, branch.out(0))
        return io.NodeOutput(results.out(0), expand=builder.finalize())


READ_PROMPT = ("vicr", "dreamsr")

TOGGLES = {
    "bicubic": "Pillow's bicubic enlargement, what a result has to beat.",
    "vosr_nano": "The bundled model: needs no file. Best at 1 and 2.",
    "vosr": "VOSR 0.5B in one step, as in the workflow vosr_one_step.",
    "vicr": "FLUX.1 Fill with VICR's LoRA and bridge, as in vicr_basic.",
    "dreamsr": "FLUX.1-dev with MM-ControlNet, as in dreamsr_restore.",
    "pure": "The autoregressive model, as in pure_tiled.",
}


class CompareBranch(io.ComfyNode):
    """One method: its graph, or a card with what is missing."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=BRANCH_ID,
            display_name="Compare Branch",
            category=CATEGORY,
            description="Part of Compare Methods, which makes one for each method.",
            search_aliases=ALIASES,
            is_dev_only=True,
            enable_expand=True,
            not_idempotent=True,
            inputs=[
                io.Image.Input("image", tooltip="The photo."),
                io.String.Input("method", tooltip="Which method."),
                io.Float.Input("scale", default=2.0, min=1.0, max=8.0, tooltip="Enlargement of both sides."),
                io.Int.Input("seed", default=42, min=0, max=2**64 - 1, tooltip="For noise."),
                io.String.Input("prompt", default="", tooltip="What the photo shows."),
                io.String.Input(UPSCALE_MODEL, default=NO_MODEL, tooltip="A file of models/upscale_models."),
            ],
            outputs=[ComparisonSocket.Output(display_name="result", tooltip="The result.")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    async def fingerprint_inputs(cls, method: str, upscale_model: str, **_: Any) -> str:
        """Changes when a file that was missing is there."""
        return "\n".join(await obstacles(make_branch(method, 2.0, 0, "", upscale_model)))

    @classmethod
    async def execute(
        cls, image: torch.Tensor, method: str, scale: float, seed: int, prompt: str, upscale_model: str
    ) -> io.NodeOutput:
        checked_image(image, f"{NAME}: ")
        label = LABELS.get(method, upscale_model)
        branch = make_branch(method, scale, seed, prompt, upscale_model)
        missing = await obstacles(branch)
        if missing:
            return io.NodeOutput((Entry(label, None, card="\n".join(["Not run. Missing:", *missing])),))
        token = cls.hidden.unique_id
        builder = GraphBuilder()
        photo = {(PHOTO, 0): photo_link(cls)}
        copies = copy_nodes(builder, DynamicPrompt(branch.graph), branch.graph, photo, shown_on_originals=False)
        made, output = branch.result
        end = builder.node(END_ID, id="end", image=copies[made].out(output), token=token, label=label)
        start_watch(token)
        return io.NodeOutput(end.out(0), expand=builder.finalize())


def photo_link(node: type[io.ComfyNode]) -> list[Any]:
    """What the running node's image is connected to, to hand it on to the nodes of its expansion."""
    link = input_link(node.hidden.dynprompt, node.hidden.unique_id, "image")
    if link is None:
        raise ValueError(f"{NAME}: connect a photo.")
    return list(link)


LABELS = {method.name: method.label for method in METHODS}
IN_ORDER = (*LABELS, UPSCALE_MODEL)
Entries = tuple[Entry, ...]


class CompareEnd(io.ComfyNode):
    """Ends the watch that CompareBranch started, and names the result."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=END_ID,
            display_name="Compare End",
            category=CATEGORY,
            description="Part of Compare Methods: ends the measurement of one method.",
            search_aliases=ALIASES,
            is_dev_only=True,
            inputs=[
                io.Image.Input("image", tooltip="The result."),
                io.String.Input("token", tooltip="Which measurement."),
                io.String.Input("label", tooltip="Name of the method."),
            ],
            outputs=[ComparisonSocket.Output(display_name="result", tooltip="The result.")],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, token: str, label: str) -> io.NodeOutput:
        notes: tuple[str, ...] = ()
        if (watched := stop_watch(token)) is not None:
            seconds, peak = watched
            notes = (f"{seconds:.1f} s" + (f", peak {peak / 2**30:.2f} GiB" if peak is not None else ""),)
        return io.NodeOutput((Entry(label, checked_image(image, f"{label}: ")[0, ..., :3].cpu(), notes),))


class CompareResults(io.ComfyNode):
    """Asks for the results one after the other, so that no method's models are loaded during another's measurement."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=RESULTS_ID,
            display_name="Compare Results",
            category=CATEGORY,
            description="Part of Compare Methods: gathers the results.",
            search_aliases=ALIASES,
            is_dev_only=True,
            inputs=[
                ComparisonSocket.Input(name, optional=True, lazy=True, tooltip=f"Result of {LABELS.get(name, name)}.")
                for name in IN_ORDER
            ],
            outputs=[ComparisonSocket.Output(display_name="results", tooltip="The results in order.")],
        )

    @classmethod
    def check_lazy_status(cls, **results: Entries | None) -> list[str]:
        return [name for name in IN_ORDER if name in results and results[name] is None][:1]

    @classmethod
    def execute(
        cls,
        bicubic: Entries = (),
        vosr_nano: Entries = (),
        vosr: Entries = (),
        vicr: Entries = (),
        dreamsr: Entries = (),
        pure: Entries = (),
        upscale_model: Entries = (),
    ) -> io.NodeOutput:
        return io.NodeOutput((*bicubic, *vosr_nano, *vosr, *vicr, *dreamsr, *pure, *upscale_model))


class CompareSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        template = io.MultiType.Input(
            "image",
            types=[io.Image, ComparisonSocket],
            optional=True,
            tooltip="An image, a batch (a column each), or the results of Compare Methods.",
        )
        return io.Schema(
            node_id="RealISR_CompareSheet",
            display_name=SHEET,
            category=CATEGORY,
            description=(
                "Puts any number of results side by side on one labelled sheet: the whole picture, and below it the "
                "same enlarged crops of each, chosen by hand or where the results differ most. On the node itself a "
                "slider compares any two."
            ),
            search_aliases=ALIASES,
            is_output_node=True,
            inputs=[
                io.Autogrow.Input(
                    "images",
                    template=io.Autogrow.TemplatePrefix(template, prefix="image", min=1, max=MAX_IMAGES),
                    tooltip="The results. Images of another size than the first are brought to its size (bicubic).",
                ),
                io.String.Input(
                    "labels",
                    multiline=True,
                    default="",
                    tooltip="A name per image, a line each, in order. Results of Compare Methods bring their own, "
                    "which an empty line keeps.",
                ),
                io.Int.Input("crops", default=3, min=0, max=12, tooltip="How many places to enlarge."),
                io.Int.Input(
                    "crop_size", default=96, min=8, max=2048, tooltip="Side of a crop in pixels of the result."
                ),
                io.String.Input(
                    "places",
                    default="",
                    tooltip="Where to look: x and y in percent, such as 50 40; 12 80. Empty: where the results differ "
                    "most. A click on the picture of this node adds one.",
                ),
                io.Int.Input("cell", default=320, min=64, max=2048, step=8, tooltip="Width of a column in pixels."),
                io.Int.Input(
                    "columns", default=7, min=1, max=MAX_IMAGES, tooltip="Results side by side before a new row begins."
                ),
                io.String.Input(
                    "metrics",
                    default="",
                    tooltip="No-reference scores to print under each name: pyiqa names separated by commas, such as "
                    "niqe, musiq. Empty: none.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="The sheet, to save."),
                io.String.Output(display_name="table", tooltip="Name, seconds, memory and scores, a line per result."),
            ],
        )

    @classmethod
    def validate_inputs(cls, places: str | None = None, metrics: str | None = None, *, images: Any = None):
        if places is not None and (error := error_of(partial(parse_places, places))):
            return error
        return (metrics_error(metrics) if metrics and metrics.strip() else None) or True

    @classmethod
    def execute(
        cls,
        images: Mapping[str, Any],
        labels: str,
        crops: int,
        crop_size: int,
        places: str,
        cell: int,
        columns: int,
        metrics: str,
    ) -> io.NodeOutput:
        entries = scored(of_one_size(gather(images, labels.splitlines())), metrics)
        pictures = [entry.image for entry in entries if entry.image is not None]
        chosen = parse_places(places)[:crops] if places.strip() else most_different(pictures, crop_size, crops)
        sheet = draw_sheet(entries, chosen, crop_size, cell, columns)
        lines = ["\t".join([entry.label, *(entry.notes or [" ".join(entry.card.split())])]) for entry in entries]
        shown = {
            "entries": [shown_entry(entry) for entry in entries],
            "places": [list(place) for place in chosen],
        }
        return io.NodeOutput(sheet[None], "\n".join(lines), ui={"compare": [shown]})


def gather(images: Mapping[str, Any], names: Sequence[str]) -> list[Entry]:
    """Everything connected as entries in order; the lines of `names` in place of their own labels where not empty."""
    found: list[Entry] = []
    for key in sorted(images, key=lambda name: int(name.removeprefix("image"))):
        value = images[key]
        if value is None:
            continue
        if isinstance(value, torch.Tensor):
            batch = checked_image(value, f"{SHEET} ({key}): ")
            found += [Entry(f"Image {len(found) + number + 1}", image[..., :3]) for number, image in enumerate(batch)]
        else:
            found += value
    if not found:
        raise ValueError(f"{SHEET}: nothing is connected. Connect images, or the results of Compare Methods.")
    given = [*(name.strip() for name in names), *[""] * len(found)]
    return [
        Entry(name or entry.label, entry.image, entry.notes, entry.card)
        for name, entry in zip(given, found, strict=False)
    ]


def of_one_size(entries: Sequence[Entry]) -> list[Entry]:
    first = next((entry.image for entry in entries if entry.image is not None), None)
    if first is None:
        return list(entries)
    height, width = first.shape[:2]

    def fitted(image: torch.Tensor | None) -> torch.Tensor | None:
        return None if image is None else resize(image[None], width, height)[0]

    return [Entry(entry.label, fitted(entry.image), entry.notes, entry.card) for entry in entries]


def scored(entries: Sequence[Entry], metrics: str) -> list[Entry]:
    """Entries with a line for each metric under their notes."""
    pictures = [entry.image for entry in entries if entry.image is not None]
    if not metrics.strip() or not pictures:
        return list(entries)
    chosen = parse_metrics(metrics)
    scores = iter(score_all(pictures, chosen).tolist())

    def noted(entry: Entry) -> Entry:
        if entry.image is None:
            return entry
        lines = [
            f"{metric.name} {score:.4g} ({'lower' if metric.lower_is_better else 'higher'} is better)"
            for metric, score in zip(chosen, next(scores), strict=True)
        ]
        return Entry(entry.label, entry.image, (*entry.notes, *lines), entry.card)

    return [noted(entry) for entry in entries]


PREVIEW_SIDE = 2048
"""Longest side in pixels of the pictures that the node's slider shows."""


def shown_entry(entry: Entry) -> dict[str, Any]:
    """An entry for the browser, its picture as a temporary file."""
    shown: dict[str, Any] = {"label": entry.label, "notes": list(entry.notes), "card": entry.card}
    if entry.image is not None and (file := save_preview(entry.image, PREVIEW_SIDE, lossless=True)):
        shown["file"] = file
    return shown


NODES = [CompareMethods, CompareBranch, CompareEnd, CompareResults, CompareSheet]
