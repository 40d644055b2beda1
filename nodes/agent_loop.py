"""Rounds of prompt refinement and restoration (VICR, arXiv 2606.00704).

P_k = Agent(LQ, SR_{k-1}, P_{k-1}, P_0), SR_k = restore(LQ, P_k): round 1 is the restoration as the artist wired it,
with the initial prompt P_0, each further round a copy of it with another prompt, put into the graph by node expansion.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ..host.agent.history import RefinementHistory, RoundResult, circumstances
from ..host.agent.loop import CANDIDATES_ID, LOOP_ID, RESULT_ID, ROUND_ID, START_ID, Expansion, Wiring
from ..host.images import checked_image
from ..host.progress import show_on_node
from ..models.drift import kept_candidates, measure_drift, told_drifts
from .agent import AgentPromptRefiner, check_previous, refiner_options
from .inputs import drift_limit_input, vlm_input
from .sockets import AgentLoopSocket

log = logging.getLogger(__name__)

CATEGORY = "RealISR/Agent"
MAX_ROUNDS = 50
ALIASES = ["agent", "loop", "refine", "iterate", "rounds", "candidates", "VLM", "VICR", "best of n"]


class AgentRefinementStart(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=START_ID,
            display_name="Agent Refinement Start",
            category=CATEGORY,
            description=(
                "Where an Agent Refinement Loop begins. Everything that is wired between this node's prompt and the "
                "loop's image runs once per round, each time with the prompt of that round."
            ),
            search_aliases=ALIASES,
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The low-quality image that is restored, as the agent is to see it. One image; a list of "
                    "images runs once for each.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="The prompt of round 1, and the agent's anchor in all others: a caption of the low-quality "
                    "image. The paper takes LLaVA's; it tried to start from the agent's own, and rejected that.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="prompt",
                    tooltip="This round's prompt: the initial one in round 1, then the one the agent wrote. Wire it to "
                    "the text encoder.",
                ),
                io.Image.Output(display_name="image", tooltip="The low-quality image, unchanged in every round."),
                io.Int.Output(display_name="round", tooltip="Number of the round, 1 for the first."),
                AgentLoopSocket.Output(
                    display_name="loop", tooltip="To the Agent Refinement Loop that ends this loop."
                ),
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, prompt: str) -> io.NodeOutput:
        """Raises ValueError for several images."""
        check_single(image, "Agent Refinement Start: the image")
        return io.NodeOutput(prompt, image, 1, RefinementHistory(prompt))


class AgentRefinementLoop(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=LOOP_ID,
            display_name="Agent Refinement Loop",
            category=CATEGORY,
            description=(
                "Restores an image several times with a prompt that an agent improves each time: it looks at the "
                "low-quality image, the previous restoration and the initial prompt, and rewrites the previous one. "
                "The restoration is "
                "whatever is wired between Agent Refinement Start and this node; seed, noise, steps and guidance stay "
                "the same in every round. Finished rounds are kept: raising the number of rounds runs only the new "
                "ones. Choose among the candidates with NR-IQA Best-of-N Selector."
            ),
            search_aliases=ALIASES,
            is_input_list=True,
            enable_expand=True,
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            inputs=[
                AgentLoopSocket.Input("loop", tooltip="From Agent Refinement Start."),
                io.Image.Input(
                    "image",
                    lazy=True,
                    tooltip="The restored image, made with the prompt of Agent Refinement Start.",
                ),
                lazy_vlm_input(),
                io.Int.Input(
                    "rounds",
                    default=10,
                    min=1,
                    max=MAX_ROUNDS,
                    tooltip="Candidates to make, the first with the initial prompt; the paper goes up to 10. Start "
                    "with 3 and raise it: rounds that are done are not run again.",
                ),
                *refiner_options(),
                drift_limit_input(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="candidates",
                    is_output_list=True,
                    tooltip="A list with the restored image of each round, in the order of the rounds.",
                ),
                io.String.Output(
                    display_name="prompts",
                    is_output_list=True,
                    tooltip="A list with the prompt of each candidate, in the same order.",
                ),
                io.String.Output(
                    display_name="report", tooltip="Round by round: the prompt, what the agent changed, and why."
                ),
            ],
        )

    @classmethod
    def check_lazy_status(
        cls, loop: Loops, image: list[Any], rounds: list[int], vlm: list[Any], max_length: list[int], **_: Any
    ) -> list[str]:
        """Look at the wiring and the first prompt before the first restoration runs; ask for the agent after it."""
        Wiring.read(cls.hidden.dynprompt, cls.hidden.unique_id)
        for history in loop if rounds[0] > 1 else []:
            check_previous(history.prompt, max_length[0])
        if image[0] is None:
            return ["image"]
        return ["vlm"] if rounds[0] > 1 and vlm[0] is None else []

    @classmethod
    def execute(
        cls,
        loop: Loops,
        image: list[torch.Tensor],
        vlm: list[Any],
        rounds: list[int],
        seed: list[int],
        max_length: list[int],
        on_failure: list[str],
        instruction: Sequence[str] = (),
        drift_limit: Sequence[float] = (0.0,),
    ) -> io.NodeOutput:
        """All come as lists. The refiner's inputs are only compared here: each round's node gets them by wire.

        Raises ValueError for batches, and for a wiring that is no loop.
        """
        for restored in image:
            check_single(restored, "Agent Refinement Loop: the restored image")
        if len(image) != len(loop):
            raise ValueError(
                f"Agent Refinement Loop: {len(loop)} image(s) went into Agent Refinement Start, but {len(image)} came "
                "out of the restoration. It has to make one image from each; merge or split lists outside of the loop."
            )
        if rounds[0] == 1:
            prompts = [history.prompt for history in loop]
            return io.NodeOutput(image, prompts, report(prompts, [], []))
        for history in loop:
            history.total = rounds[0]
        wiring = Wiring.read(cls.hidden.dynprompt, cls.hidden.unique_id)
        options = (seed, max_length, on_failure, instruction)
        run = loop[0].continued(circumstances(wiring.graph, wiring.loop, wiring.result[0], vlm, options), image)
        expansion = Expansion(wiring, run)
        for number in range(2, rounds[0] + 1):
            expansion.add_round(number)
        links, nodes = expansion.finish()
        return io.NodeOutput(*links, expand=nodes)


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
            inputs=[*refiner.inputs, *round_inputs()],
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
    ) -> io.NodeOutput:
        """Asks unless this start has the round's answer. Raises RuntimeError with the round in front."""
        title = f"Round {round} of {loop.total}" if loop.total else f"Round {round}"
        log.info("RealISR: Agent Refinement Loop: %s", title.lower())
        show_on_node(title)
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
    ) -> io.NodeOutput:
        """Raises LookupError for a round that was kept and is gone, ValueError for batches."""
        history, (key,), (number,) = loop[0], run, round
        if image is None:
            return io.NodeOutput(*history.recall(key, number))
        for restored in image:
            check_single(restored, f"Agent Refinement Loop, round {number}: the restored image")
        result = RoundResult(image, list(prompt), list(changes), list(reason))
        history.record(key, number, result)
        return io.NodeOutput(*result)


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
    ) -> io.NodeOutput:
        """All that the rounds made, in the order of the rounds, but for what drifted too far."""
        made, texts = in_order(images), in_order(prompts)
        told = (in_order(changes), in_order(reasons), len(images))
        if not lq_image or drift_limit[0] <= 0:
            return io.NodeOutput(made, texts, report(texts, *told))
        drifts = [measure_drift(image[0, ..., :3], lq_of(lq_image, index)).value for index, image in enumerate(made)]
        kept = kept_candidates(drifts, len(lq_image), drift_limit[0])
        notes = told_drifts(drifts, len(lq_image), drift_limit[0])
        return io.NodeOutput([made[i] for i in kept], [texts[i] for i in kept], report(texts, *told, notes))


def lq_of(lq_image: Sequence[torch.Tensor], index: int) -> torch.Tensor:
    """The low-quality image `[h, w, 3]` of a candidate, all of them listed round by round."""
    return lq_image[index % len(lq_image)][0, ..., :3]


Loops = list[RefinementHistory]

Rounds = Mapping[str, list[Any]]
"""Number of the round -> what it made, one entry per image."""


def lazy_vlm_input() -> io.MultiType.Input:
    """The agent, which is not loaded for the first round."""
    made = vlm_input(
        "The agent: Chat Endpoint, Load Local VLM, or the CLIP of a text encoder that can see and write. Not used with "
        "1 round."
    )
    made.lazy = True
    return made


def round_inputs() -> list[io.Input]:
    """What tells a node of a round which round it is."""
    return [
        AgentLoopSocket.Input("loop", tooltip="From Agent Refinement Start."),
        io.String.Input("run", tooltip="Which of the loop's runs the round belongs to."),
        io.Int.Input("round", default=2, min=2, tooltip="Number of the round."),
    ]


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


NODES = [
    AgentRefinementStart,
    AgentRefinementLoop,
    AgentRefinementRound,
    AgentRefinementResult,
    AgentRefinementCandidates,
]
