"""No-reference quality: scores of images, and the best of several restorations of one image (arXiv 2606.00704)."""

from __future__ import annotations

from itertools import accumulate

from comfy_api.latest import io

from ..host.images import checked_image
from ..host.iqa import score_all, weights_folder
from ..models.best_of_n import best_of_n
from ..models.candidates import ARRANGEMENTS, AUTO, group_candidates, matched_pins, read_pins
from ..models.drift import vetoed
from ..services.iqa.kept_scores import content_of
from ..services.iqa.metrics import DEFAULT_METRICS, parse_metrics
from ..services.iqa.weights import require_weights
from .candidate_cards import cards_of, drift_text, drifts_of, pin_text
from .inputs import drift_limit_input, error_of
from .score_table import ScoreTable, Section

CATEGORY = "RealISR/Quality"


def metrics_input() -> io.String.Input:
    return io.String.Input(
        "metrics",
        default=", ".join(DEFAULT_METRICS),
        tooltip=(
            "pyiqa names of no-reference metrics, separated by commas. Default: the paper's four. Others: clipiqa+, "
            "liqe_mix, niqe, piqe (which needs no weights), ... Weights are read from models/classifiers/pyiqa."
        ),
    )


def metrics_error(text: str | None) -> str | None:
    """What can be said about the metrics before a run; a linked text is not known yet."""
    if text is None:
        return None
    try:
        require_weights(parse_metrics(text), weights_folder())
    except (ValueError, ImportError) as error:
        return str(error)
    return None


def pinned_input() -> io.String.Input:
    return io.String.Input(
        "pinned",
        default="",
        optional=True,
        socketless=True,
        tooltip=(
            "Numbers of the candidates that were chosen by hand, from 0, one for each image, separated by commas; - or "
            "nothing lets the scores choose. A click on a candidate's card writes it."
        ),
        extra_dict={"hidden": True},
    )


class NRIQAScore(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_NRIQAScore",
            display_name="NR-IQA Score",
            category=CATEGORY,
            description=(
                "Scores images with no-reference quality metrics, which need no clean original. Shows a table on the "
                "node. Alpha is left out."
            ),
            search_aliases=["iqa", "quality", "score", "metric", "pyiqa", "musiq", "clipiqa", "maniqa", "liqe", "niqe"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Image or batch to score, each image by itself."),
                metrics_input(),
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
        return metrics_error(metrics) or True

    @classmethod
    def execute(cls, images, metrics: str) -> io.NodeOutput:
        chosen = parse_metrics(metrics)
        scores = score_all(list(checked_image(images, "NR-IQA Score: ")), chosen)
        table = ScoreTable(chosen, [Section("", scores)])
        return io.NodeOutput(table.text(), scores.flatten().tolist(), ui=table.ui())


class NRIQABestOfN(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_NRIQABestOfN",
            display_name="NR-IQA Best-of-N Selector",
            category=CATEGORY,
            description=(
                "Picks the best of several restorations of one image: ranks them by each no-reference metric and takes "
                "the smallest sum of ranks. Ties go to the larger mean of the normalised scores, then to the earliest. "
                "Shows all of them on the node, where a click takes another one. Alpha is kept and not judged."
            ),
            search_aliases=["best of n", "select", "choose", "rank", "iqa", "quality", "candidates", "vicr", "pyiqa"],
            is_input_list=True,
            has_intermediate_output=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="The candidates: the list of Agent Refinement Loop, or a batch. See candidates."
                ),
                metrics_input(),
                io.Combo.Input(
                    "candidates",
                    options=list(ARRANGEMENTS),
                    default=AUTO,
                    tooltip=(
                        "list entries: every entry of the list is one candidate, its batch holds the images. batch "
                        "items: the items of a batch are the candidates of one image, every entry of the list is "
                        "another image. auto: list entries when there are several, else batch items."
                    ),
                ),
                io.Int.Input(
                    "image_count",
                    default=1,
                    min=1,
                    max=4096,
                    advanced=True,
                    tooltip=(
                        "With list entries: how many images the list interleaves. Entries then run candidate by "
                        "candidate: all images of the first, all images of the second."
                    ),
                ),
                io.String.Input(
                    "prompts",
                    optional=True,
                    force_input=True,
                    tooltip="Prompts of the candidates in the same order, as Agent Refinement Loop gives them.",
                ),
                io.Image.Input(
                    "lq_image",
                    optional=True,
                    tooltip="Only for drift_limit: the low-quality image. One for all images, or one for each.",
                ),
                drift_limit_input(),
                pinned_input(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    is_output_list=True,
                    tooltip="The chosen image; a batch when the candidates are batches.",
                ),
                io.Int.Output(
                    display_name="index",
                    is_output_list=True,
                    tooltip="Which candidate it is, counted from 0. One per image.",
                ),
                io.String.Output(
                    display_name="prompt",
                    is_output_list=True,
                    tooltip="The prompt it was made with; empty without prompts. One per image.",
                ),
                io.String.Output(
                    display_name="table", tooltip="Scores, ranks and sums of every candidate as text, a line for each."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, metrics: list[str] | None = None, pinned: list[str] | None = None):
        pins = error_of(lambda: read_pins(pinned[0] if pinned else ""))
        return pins or metrics_error(metrics[0] if metrics else None) or True

    @classmethod
    def execute(
        cls, images, metrics, candidates, image_count, prompts=None, lq_image=None, drift_limit=(0.0,), pinned=("",)
    ) -> io.NodeOutput:
        chosen = parse_metrics(metrics[0])
        for image in images:
            checked_image(image, "NR-IQA Best-of-N Selector: ")
        groups = group_candidates(images, prompts, candidates[0], image_count[0])
        subjects = [subject for group in groups for subject in group.subjects]
        counts = [len(subject) for subject in subjects]
        pins = matched_pins(read_pins(pinned[0]), counts)
        drifts = drifts_of(subjects, lq_image, drift_limit[0])
        vetoes = [vetoed(drift, drift_limit[0]) for drift in drifts]
        every = [candidate for subject in subjects for candidate in subject]
        contents = [content_of(candidate) for candidate in every]
        scores = score_all(every, chosen, contents)
        higher = [not metric.lower_is_better for metric in chosen]
        tables = scores.split(counts)
        rankings = [best_of_n(table, higher, veto) for table, veto in zip(tables, vetoes, strict=True)]
        best = [ranking.best if pin is None else pin for ranking, pin in zip(rankings, pins, strict=True)]

        ends = list(accumulate(len(group.subjects) for group in groups))
        results = [group.joined(best[end - len(group.subjects) : end]) for group, end in zip(groups, ends, strict=True)]
        prompts_of = [group.prompts for group in groups for _ in group.subjects]
        best_prompts = [texts[index] if texts else "" for texts, index in zip(prompts_of, best, strict=True)]
        names = [f"image {number}" if len(subjects) > 1 else "" for number in range(len(subjects))]
        told = [drift_text(drift, drift_limit[0]) for drift in drifts]
        said = [pin_text(pin, ranking.best) for pin, ranking in zip(pins, rankings, strict=True)]
        titles = [", ".join(filter(None, parts)) for parts in zip(names, told, said, strict=True)]
        cards = cards_of(every, contents, drifts if drift_limit[0] > 0 else [], vetoes)
        shown = [cards[end - count : end] for end, count in zip(accumulate(counts), counts, strict=True)]
        sections = [Section(*parts) for parts in zip(titles, tables, rankings, prompts_of, pins, shown, strict=True)]
        table = ScoreTable(chosen, sections)
        return io.NodeOutput(results, best, best_prompts, table.text(), ui=table.ui())


NODES = [NRIQAScore, NRIQABestOfN]
