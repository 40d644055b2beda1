"""The nodes that an Agent Refinement Loop puts into the graph while it runs; nobody wires them by hand."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..host.agent.history import RefinementHistory, RoundResult
from ..host.agent.loop import CANDIDATES_ID, RESULT_ID, ROUND_ID, MadeRounds
from ..host.agent.stopping import STOPPING
from ..host.agent.timeline import Place, rows_of, tell
from ..host.images import checked_image
from ..models.drift import kept_candidates, measure_drift, told_drifts
from .agent import AgentPromptRefiner
from .inputs import drift_limit_input
from .sockets import AgentLoopSocket, AgentRoundsSocket

log = logging.getLogger(__name__)

CATEGORY = "RealISR/Agent"
MAX_ROUNDS = 50
ALIASES = ["agent", "loop", "refine", "iterate", "rounds", "candidates", "VLM", "VICR", "best of n"]
EDITED = "Written by you."
"""What the report says of a round whose prompt the agent did not write."""


class AgentRefinementRound(io.ComfyNode):
    """The refiner of one round. It asks once, and tells the round's number with what goes wrong."""

    @classmethod
    def define_schema(cls):
        refiner = AgentPromptRefiner.define_schema()
        return io.Schema(
            node_id=ROUND_ID,
            display_name="Agent Refinement Round",
            category=CATEGORY,
            description="Part of Agent Refinement Loop, which makes one for each round: the agent of that round.",
            search_aliases=ALIASES,
            is_dev_only=True,
            inputs=[
                *refiner.inputs,
                *round_inputs(),
                io.String.Input(
                    "edited_prompt",
                    optional=True,
                    force_input=True,
                    tooltip="The artist's prompt for this round; the agent is not asked then.",
                ),
            ],
            outputs=refiner.outputs,
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        previous_prompt: str,
        vlm: Any,
        seed: int,
        max_length: int,
        on_failure: str,
        loop: RefinementHistory,
        run: str,
        round: int,
        previous_result: torch.Tensor | None = None,
        instruction: str = "",
        initial_prompt: str = "",
        edited_prompt: str = "",
    ) -> io.NodeOutput:
        """Asks unless this start has the round's answer. Raises RuntimeError with the round in front.

        Blocks all that hangs on it when the loop is to end before this round.
        """
        if not STOPPING.goes_on(Place.here(), run, round):
            loop.halted = run
            return io.NodeOutput(*[ExecutionBlocker(None)] * 3)
        title = f"Round {round} of {loop.total}" if loop.total else f"Round {round}"
        log.info("RealISR: Agent Refinement Loop: %s", title.lower())
        loop.begun[run, round] = time.monotonic()
        if edited_prompt:
            return io.NodeOutput(edited_prompt, EDITED, "")
        if (run, round) not in loop.answers:
            try:
                answer = AgentPromptRefiner.execute(
                    image,
                    previous_prompt,
                    vlm,
                    seed,
                    max_length,
                    on_failure,
                    previous_result,
                    instruction,
                    initial_prompt,
                )
            except Exception as error:
                raise RuntimeError(f"Agent Refinement Loop, round {round}: {error}") from error
            loop.answers[run, round] = answer.result
        return io.NodeOutput(*loop.answers[run, round])


class AgentRefinementResult(io.ComfyNode):
    """Keeps what a round made, or gives what it made before."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=RESULT_ID,
            display_name="Agent Refinement Result",
            category=CATEGORY,
            description="Part of Agent Refinement Loop: keeps the result of a round for when the loop runs again.",
            search_aliases=ALIASES,
            is_dev_only=True,
            is_input_list=True,
            inputs=[
                *round_inputs(),
                io.Image.Input("image", optional=True, tooltip="The restored image; open for a round made before."),
                io.String.Input("prompt", optional=True, tooltip="The prompt of the round."),
                io.String.Input("changes", optional=True, tooltip="What the agent changed."),
                io.String.Input("reason", optional=True, tooltip="Why it did."),
                made_input(),
            ],
            outputs=[
                io.Image.Output(display_name="image", is_output_list=True, tooltip="The restored image."),
                io.String.Output(display_name="prompt", is_output_list=True, tooltip="The prompt of the round."),
                io.String.Output(display_name="changes", is_output_list=True, tooltip="What the agent changed."),
                io.String.Output(display_name="reason", is_output_list=True, tooltip="Why it did."),
            ],
        )

    @classmethod
    def execute(
        cls,
        loop: Loops,
        run: list[str],
        round: list[int],
        image: list[torch.Tensor] | None = None,
        prompt: Sequence[str] = (),
        changes: Sequence[str] = (),
        reason: Sequence[str] = (),
        made: Sequence[MadeRounds] = (),
    ) -> io.NodeOutput:
        """Raises LookupError for a round that was kept and is gone, ValueError for batches."""
        history, (key,), (number,) = loop[0], run, round
        if image is None:
            return io.NodeOutput(*history.recall(key, number)[:4])
        for restored in image:
            check_single(restored, f"Agent Refinement Loop, round {number}: the restored image")
        rows = rows_of(
            number,
            image,
            prompt,
            changes,
            reason,
            edited=number in made[0].edits,
            drifts=measure_drifts(loop, image, made[0].drift_limit),
            seconds=history.seconds(key, number),
        )
        result = RoundResult(image, list(prompt), list(changes), list(reason), rows)
        history.record(key, number, result)
        made[0].rounds[number] = result
        made[0].rows.extend(rows)
        tell("running", made[0].total, rows)
        return io.NodeOutput(*result[:4])


class AgentRefinementCandidates(io.ComfyNode):
    """Gathers what the rounds made. Lists are handed on as single values, which the loop's outputs then spread."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=CANDIDATES_ID,
            display_name="Agent Refinement Candidates",
            category=CATEGORY,
            description="Part of Agent Refinement Loop: gathers the images and prompts of its rounds.",
            search_aliases=ALIASES,
            is_dev_only=True,
            is_input_list=True,
            inputs=[
                per_round(io.Image.Input("image", tooltip="The restored image of a round."), "images"),
                per_round(io.String.Input("prompt", tooltip="The prompt of a round."), "prompts"),
                per_round(io.String.Input("change", tooltip="What the agent changed in a round."), "changes"),
                per_round(io.String.Input("reason", tooltip="Why it did."), "reasons"),
                io.Image.Input("lq_image", optional=True, tooltip="The low-quality image, for drift_limit."),
                drift_limit_input(),
                made_input(),
                io.Image.Input(
                    "after", optional=True, raw_link=True, tooltip="The last round, which is waited for and not taken."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="candidates", tooltip="The images, round by round."),
                io.String.Output(display_name="prompts", tooltip="The prompts, round by round."),
                io.String.Output(display_name="report", tooltip="The rounds in words."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: Rounds,
        prompts: Rounds,
        changes: Rounds,
        reasons: Rounds,
        lq_image: Sequence[torch.Tensor] = (),
        drift_limit: Sequence[float] = (0.0,),
        made: Sequence[MadeRounds] = (),
        after: Any = None,
    ) -> io.NodeOutput:
        """All that the rounds made, in the order of the rounds, but for what drifted too far.

        The rounds known before come over the links, those of this run in `made`.
        """
        new = [made[0].rounds.pop(number) for number in sorted(made[0].rounds)] if made else []
        rounds = len(images) + len(new)
        candidates, texts, changed, why = (
            in_order(known) + [value for result in new for value in result[index]]
            for index, known in enumerate((images, prompts, changes, reasons))
        )
        if made:
            tell("done" if rounds == made[0].total else "stopped", made[0].total, made[0].rows, fresh=True)
        if not lq_image or drift_limit[0] <= 0:
            return io.NodeOutput(candidates, texts, report(texts, changed, why, rounds))
        drifts = [measure_drift(image[0, ..., :3], lq_of(lq_image, i)).value for i, image in enumerate(candidates)]
        kept = kept_candidates(drifts, len(lq_image), drift_limit[0])
        told = report(texts, changed, why, rounds, told_drifts(drifts, len(lq_image), drift_limit[0]))
        return io.NodeOutput([candidates[i] for i in kept], [texts[i] for i in kept], told)


def lq_of(lq_image: Sequence[torch.Tensor], index: int) -> torch.Tensor:
    """The low-quality image `[h, w, 3]` of a candidate, all of them listed round by round."""
    return lq_image[index % len(lq_image)][0, ..., :3]


def measure_drifts(loop: Loops, images: Sequence[torch.Tensor], limit: float) -> list[float]:
    """Of the restored images of a round, one per start; none where `limit` is off."""
    if limit <= 0:
        return []
    pairs = zip(images, loop, strict=False)
    return [measure_drift(image[0, ..., :3], history.image[0, ..., :3]).value for image, history in pairs]


Loops = list[RefinementHistory]

Rounds = Mapping[str, list[Any]]
"""Number of the round -> what it made, one entry per image."""


def round_inputs() -> list[io.Input]:
    """What tells a node of a round which round it is."""
    return [
        AgentLoopSocket.Input("loop", tooltip="From Agent Refinement Start."),
        io.String.Input("run", tooltip="Which of the loop's runs the round belongs to."),
        io.Int.Input("round", default=2, min=2, tooltip="Number of the round."),
    ]


def made_input() -> io.Input:
    return AgentRoundsSocket.Input("made", optional=True, tooltip="What this run of the loop makes, round by round.")


def per_round(template: io.Input, name: str) -> io.Autogrow.Input:
    """As many inputs of one kind as there are rounds."""
    names = [str(number) for number in range(1, MAX_ROUNDS + 1)]
    return io.Autogrow.Input(name, io.Autogrow.TemplateNames(template, names, min=0), tooltip=template.tooltip)


def in_order(rounds: Rounds) -> list[Any]:
    return [value for number in sorted(rounds, key=int) for value in rounds[number]]


def report(
    prompts: list[str], changes: list[str], reasons: list[str], rounds: int = 1, notes: Sequence[str] = ()
) -> str:
    """The rounds in words. All lists are round by round, changes and reasons from round 2 on; notes: further lines."""
    images = len(prompts) // rounds
    blocks = []
    for index, prompt in enumerate(prompts):
        title = f"Round {index // images + 1}" + (f", image {index % images + 1}" if images > 1 else "")
        lines = [title, f"Prompt: {prompt}"]
        if index >= images:
            lines += [f"Changed: {changes[index - images]}", f"Why: {reasons[index - images]}"]
        lines += notes[index : index + 1]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def check_single(image: torch.Tensor, what: str) -> None:
    """Raises ValueError unless this is one IMAGE."""
    checked_image(image, f"{what}: ")
    if image.shape[0] != 1:
        raise ValueError(
            f"{what} is a batch of {image.shape[0]}. The agent looks at one image at a time: put Rebatch Images (batch "
            "size 1) before Agent Refinement Start, and the loop runs for each image."
        )


NODES = [AgentRefinementRound, AgentRefinementResult, AgentRefinementCandidates]
