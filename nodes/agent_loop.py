"""Rounds of prompt refinement and restoration (VICR, arXiv 2606.00704).

P_k = Agent(LQ, SR_{k-1}, P_{k-1}, P_0), SR_k = restore(LQ, P_k): round 1 is the restoration as the artist wired it,
with the initial prompt P_0, each further round a copy of it with another prompt, put into the graph by node expansion.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ..host.agent.edits import read_edits
from ..host.agent.history import RefinementHistory, Run, circumstances
from ..host.agent.loop import EDITED_PROMPTS, LOOP_ID, START_ID, Expansion, MadeRounds, Wiring
from ..host.agent.stopping import STOPPING
from ..host.agent.timeline import Place, Row, rows_of, tell
from .agent import check_previous, refiner_options
from .agent_rounds import ALIASES, CATEGORY, MAX_ROUNDS, Loops, check_single, measure_drifts, report
from .inputs import drift_limit_input, vlm_input
from .sockets import AgentLoopSocket


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
        return io.NodeOutput(prompt, image, 1, RefinementHistory(prompt, image))


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
                io.String.Input(
                    EDITED_PROMPTS,
                    default="",
                    optional=True,
                    advanced=True,
                    socketless=True,
                    tooltip="Your own prompts by the number of the round, where the agent is not asked; written by "
                    "Continue from here on this node's timeline. Empty: the agent writes all.",
                ),
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
    def fingerprint_inputs(cls, **_: Any) -> int:
        """A loop that was ended early goes on in the next run, where nothing else has changed."""
        return STOPPING.stops(cls.hidden.unique_id)

    @classmethod
    def check_lazy_status(
        cls,
        loop: Loops,
        image: list[Any],
        rounds: list[int],
        vlm: list[Any],
        max_length: list[int],
        edited_prompts: Sequence[str] = ("",),
        **_: Any,
    ) -> list[str]:
        """Look at the wiring and the prompts before the first restoration runs; ask for the agent after it."""
        Wiring.read(cls.hidden.dynprompt, cls.hidden.unique_id)
        for history in loop if rounds[0] > 1 else []:
            check_previous(history.prompt, max_length[0])
        read_edits(edited_prompts[0], rounds[0], max_length[0])
        if image[0] is None:
            loop[0].begun[cls.hidden.unique_id, 1] = time.monotonic()
            tell("running", rounds[0])
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
        edited_prompts: Sequence[str] = ("",),
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
            tell("done", 1, first_rows(loop, image, cls.hidden.unique_id, drift_limit[0]), fresh=True)
            return io.NodeOutput(image, prompts, report(prompts, [], []))
        for history in loop:
            history.total = rounds[0]
        wiring = Wiring.read(cls.hidden.dynprompt, cls.hidden.unique_id)
        run = loop[0].continued(
            circumstances(
                wiring.graph, wiring.loop, wiring.result[0], vlm, (seed, max_length, on_failure, instruction)
            ),
            image,
            read_edits(edited_prompts[0], rounds[0], max_length[0]),
        )
        if not run.told:
            run.told.extend(first_rows(loop, image, wiring.loop, drift_limit[0]))
        return expanded(wiring, run, rounds[0], drift_limit[0])


def first_rows(loop: Loops, image: list[torch.Tensor], loop_id: str, drift_limit: float) -> list[Row]:
    """Round 1 on the timeline."""
    prompts = [history.prompt for history in loop]
    drifts = measure_drifts(loop, image, drift_limit)
    return rows_of(1, image, prompts, drifts=drifts, seconds=loop[0].seconds(loop_id, 1))


def expanded(wiring: Wiring, run: Run, rounds: int, drift_limit: float) -> io.NodeOutput:
    """The loop's outputs, and the nodes of the rounds after the first that make them."""
    kept = run.rounds[: rounds - 1]
    known = len(kept) + 1
    last = rounds if known == rounds or STOPPING.goes_on(Place.here(), run.key, known + 1) else known
    rows = [*run.told, *(row for result in kept for row in result.told)]
    tell("running" if known < last else "done" if last == rounds else "stopped", rounds, rows, fresh=True)
    expansion = Expansion(wiring, run, MadeRounds(rounds, run.edits, drift_limit, rows))
    for number in range(2, last + 1):
        expansion.add_round(number)
    links, nodes = expansion.finish()
    return io.NodeOutput(*links, expand=nodes)


def lazy_vlm_input() -> io.MultiType.Input:
    """The agent, which is not loaded for the first round."""
    made = vlm_input(
        "The agent: Chat Endpoint, Load Local VLM, or the CLIP of a text encoder that can see and write. Not used with "
        "1 round."
    )
    made.lazy = True
    return made


NODES = [AgentRefinementStart, AgentRefinementLoop]
