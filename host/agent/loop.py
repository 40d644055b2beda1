"""What a refinement loop puts into the graph: the artist's restoration again, once per round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from comfy_execution.graph import DynamicPrompt
from comfy_execution.graph_utils import GraphBuilder

from ..graph_expansion import Link, between, copy_nodes, input_link, output_nodes, siblings
from .edits import Edits
from .history import RoundResult, Run
from .timeline import Row

START_ID = "RealISR_AgentRefinementStart"
LOOP_ID = "RealISR_AgentRefinementLoop"
ROUND_ID = "RealISR_AgentRefinementRound"
RESULT_ID = "RealISR_AgentRefinementResult"
CANDIDATES_ID = "RealISR_AgentRefinementCandidates"

PROMPT_OUTPUT, IMAGE_OUTPUT, ROUND_OUTPUT, LOOP_OUTPUT = 0, 1, 2, 3

DRIFT_LIMIT = "drift_limit"
EDITED_PROMPTS = "edited_prompts"

LOOP_INPUTS = ("loop", "image", "rounds", DRIFT_LIMIT, EDITED_PROMPTS)
"""The loop's own; all its other inputs are the refiner's."""


@dataclass(frozen=True)
class Wiring:
    """How an artist wired a loop, in the graph or in the expansion that the loop node is in."""

    graph: DynamicPrompt
    loop: str
    """Id of the loop node."""
    start: str
    """Id of its Agent Refinement Start."""
    result: Link
    """At the loop's image input."""
    body: frozenset[str]
    """The nodes that a round runs again: those between the start's prompt (or round number) and the result, or an
    output node beside it."""

    @classmethod
    def read(cls, graph: DynamicPrompt, loop: str) -> Wiring:
        """Raises ValueError with what to connect."""
        begin, result = input_link(graph, loop, "loop"), input_link(graph, loop, "image")
        if begin is None or graph.get_node(begin[0])["class_type"] != START_ID:
            raise ValueError(
                "Agent Refinement Loop: `loop` has to come directly from an Agent Refinement Start, not through "
                "another node."
            )
        if result is None:
            raise ValueError("Agent Refinement Loop: connect `image` with the restored image.")
        start = begin[0]

        def varies(link: Link) -> bool:
            return link in ((start, PROMPT_OUTPUT), (start, ROUND_OUTPUT))

        if not between(graph, varies, [result[0]]):
            raise ValueError(
                "Agent Refinement Loop: the restored image does not depend on the prompt of Agent Refinement Start, so "
                "that every round would make the same. Wire that prompt to the text encoder (CLIP Text Encode) of the "
                "restoration that ends in this node's `image`."
            )
        beside = outputs_beside(graph, loop, start, varies)
        return cls(graph, loop, start, result, between(graph, varies, [result[0], *beside]))


def outputs_beside(graph: DynamicPrompt, loop: str, start: str, varies: Callable[[Link], bool]) -> list[str]:
    """Output nodes that show something of each round: they hang on the start's prompt, but not by way of a loop."""
    nearby = siblings(graph, loop)
    loops = {
        node_id
        for node_id in nearby
        if graph.get_node(node_id)["class_type"] == LOOP_ID
        and (begin := input_link(graph, node_id, "loop")) is not None
        and begin[0] == start
    }
    outputs = output_nodes(graph, nearby)
    after = between(graph, lambda link: link[0] in loops, outputs)
    in_a_round = between(graph, varies, outputs)
    return [node_id for node_id in outputs if node_id in in_a_round and node_id not in after]


@dataclass(eq=False)
class MadeRounds:
    """What one run of a loop makes: the value that its nodes share.

    Not over links: a round that is left out when the loop ends early blocks every node that is linked to it.
    """

    total: int
    """Rounds that were asked for."""
    edits: Edits
    drift_limit: float
    rows: list[Row]
    """Of the rounds so far, those kept from before included."""
    rounds: dict[int, RoundResult] = field(default_factory=dict)
    """Number of a round -> what it made now."""


class Expansion:
    """Rounds 2, 3, ... of a loop as further nodes of the graph."""

    def __init__(self, wiring: Wiring, run: Run, made: MadeRounds):
        self.wiring = wiring
        self.run = run
        # Apart from the copies, whose ids follow those of the originals.
        self.own = GraphBuilder(f"{wiring.loop}.")
        self.copies: dict[str, Any] = {}
        self.images: list[list[Any]] = [[*wiring.result]]
        self.prompts: list[list[Any]] = [[wiring.start, PROMPT_OUTPUT]]
        self.kept: list[Any] = []
        self.made = made
        self.last: list[Any] | None = None
        # As they are in the graph: values that came over a link would be unknown to the cache.
        self.inputs = wiring.graph.get_node(wiring.loop)["inputs"]

    def add_round(self, number: int) -> None:
        """The result of a round: kept from before, or the agent's prompt and the restoration with it."""
        flow = {"loop": [self.wiring.start, LOOP_OUTPUT], "run": self.run.key, "round": number}
        kept = number - 2 < len(self.run.rounds)
        result = self.own.node(RESULT_ID, id=f"result_{number}", **flow, **({} if kept else self._make(number, flow)))
        self.images.append(result.out(0))
        self.prompts.append(result.out(1))
        if kept:
            self.kept.append(result)
        else:
            self.last = result.out(0)

    def _make(self, number: int, flow: dict[str, Any]) -> dict[str, Any]:
        wiring = self.wiring
        agent = self.own.node(ROUND_ID, id=f"agent_{number}", **self._agent_inputs(), **self._edit(number), **flow)
        replaced = {(wiring.start, PROMPT_OUTPUT): agent.out(0), (wiring.start, ROUND_OUTPUT): number}
        builder = GraphBuilder(f"{wiring.loop}.round_{number}.")
        copies = copy_nodes(builder, wiring.graph, wiring.body, replaced)
        self.copies |= builder.finalize()
        image = copies[wiring.result[0]].out(wiring.result[1])
        texts = {"prompt": agent.out(0), "changes": agent.out(1), "reason": agent.out(2)}
        return {"image": image, **texts, "made": self.made}

    def _edit(self, number: int) -> dict[str, Any]:
        return {"edited_prompt": self.run.edits[number]} if number in self.run.edits else {}

    def _agent_inputs(self) -> dict[str, Any]:
        return {
            **{name: value for name, value in self.inputs.items() if name not in LOOP_INPUTS},
            "image": [self.wiring.start, IMAGE_OUTPUT],
            # The anchor of every round (appendix E.3).
            "initial_prompt": self.prompts[0],
            "previous_prompt": self.prompts[-1],
            # The raw result of the round before, never the best so far.
            "previous_result": self.images[-1],
        }

    def finish(self) -> tuple[list[list[Any]], dict[str, Any]]:
        """Adds the node that gathers the rounds: links to its candidates, prompts and report, and all further nodes."""
        known = len(self.kept) + 1
        gathered = {
            **{f"images.{number}": link for number, link in enumerate(self.images[:known], 1)},
            **{f"prompts.{number}": link for number, link in enumerate(self.prompts[:known], 1)},
            **{f"changes.{number}": result.out(2) for number, result in enumerate(self.kept, 2)},
            **{f"reasons.{number}": result.out(3) for number, result in enumerate(self.kept, 2)},
        }
        if self.last is not None:
            gathered |= {"made": self.made, "after": self.last}
        if DRIFT_LIMIT in self.inputs:
            gathered["lq_image"] = [self.wiring.start, IMAGE_OUTPUT]
            gathered[DRIFT_LIMIT] = self.inputs[DRIFT_LIMIT]
        node = self.own.node(CANDIDATES_ID, id="candidates", **gathered)
        return [node.out(index) for index in range(3)], self.copies | self.own.finalize()
