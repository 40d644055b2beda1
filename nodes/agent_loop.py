"""Rounds of prompt refinement and restoration (VICR, arXiv 2606.00704).

P_k = Agent(LQ, SR_{k-1}, P_{k-1}), SR_k = restore(LQ, P_k): round 1 is the restoration as the artist wired it, each
further round a copy of it with another prompt, put into the graph by node expansion.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io
from comfy_execution.graph import DynamicPrompt
from comfy_execution.graph_utils import GraphBuilder

from ..host.graph_expansion import Link, between, copy_nodes, input_link, output_nodes, siblings
from ..host.status_text import show_on_node
from .agent import AgentPromptRefiner, check_previous, refiner_options
from .vlm import vlm_input

CATEGORY = "RealISR/Agent"
MAX_ROUNDS = 50
ALIASES = ["agent", "loop", "refine", "iterate", "rounds", "candidates", "VLM", "VICR", "best of n"]

LoopType = io.Custom("REALISR_AGENT_LOOP")
"""Says which Start a Loop belongs to; its value is the prompt of round 1."""

START_ID = "RealISR_AgentRefinementStart"
LOOP_ID = "RealISR_AgentRefinementLoop"
ROUND_ID = "RealISR_AgentRefinementRound"
CANDIDATES_ID = "RealISR_AgentRefinementCandidates"

PROMPT_OUTPUT, IMAGE_OUTPUT, ROUND_OUTPUT = 0, 1, 2

LOOP_INPUTS = ("loop", "image", "rounds")
"""The loop's own; all its other inputs are the refiner's."""


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
                    "prompt", multiline=True, default="",
                    tooltip="The prompt of round 1, usually a caption of the low-quality image.",
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
                LoopType.Output(display_name="loop", tooltip="To the Agent Refinement Loop that ends this loop."),
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, prompt: str) -> io.NodeOutput:
        check_single(image, "Agent Refinement Start: the image")
        return io.NodeOutput(prompt, image, 1, prompt)


class AgentRefinementLoop(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=LOOP_ID,
            display_name="Agent Refinement Loop",
            category=CATEGORY,
            description=(
                "Restores an image several times with a prompt that an agent improves each time: it looks at the "
                "low-quality image and the previous restoration, and rewrites the previous prompt. The restoration is "
                "whatever is wired between Agent Refinement Start and this node; seed, noise, steps and guidance stay "
                "the same in every round. Finished rounds are kept: raising the number of rounds runs only the new "
                "ones. Choose among the candidates with NR-IQA Best-of-N Selector."
            ),
            search_aliases=ALIASES,
            is_input_list=True,
            enable_expand=True,
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            inputs=[
                LoopType.Input("loop", tooltip="From Agent Refinement Start."),
                io.Image.Input(
                    "image", lazy=True,
                    tooltip="The restored image, made with the prompt of Agent Refinement Start.",
                ),
                lazy_vlm_input(),
                io.Int.Input(
                    "rounds", default=10, min=1, max=MAX_ROUNDS,
                    tooltip="Candidates to make, the first with the initial prompt; the paper goes up to 10. Start "
                    "with 3 and raise it: rounds that are done are not run again.",
                ),
                *refiner_options(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="candidates", is_output_list=True,
                    tooltip="A list with the restored image of each round, in the order of the rounds.",
                ),
                io.String.Output(
                    display_name="prompts", is_output_list=True,
                    tooltip="A list with the prompt of each candidate, in the same order.",
                ),
                io.String.Output(
                    display_name="report", tooltip="Round by round: the prompt, what the agent changed, and why."
                ),
            ],
        )

    @classmethod
    def check_lazy_status(cls, loop: list[str], rounds: list[int], max_length: list[int], **_: Any) -> list[str]:
        """Look at the wiring and the first prompt before the first restoration runs; then ask for that."""
        Wiring.read(cls.hidden.dynprompt, cls.hidden.unique_id)
        for prompt in loop if rounds[0] > 1 else []:
            check_previous(prompt, max_length[0])
        return ["image"]

    @classmethod
    def execute(
        cls, loop: list[str], image: list[torch.Tensor], rounds: list[int], vlm: Any = None,
        seed: Any = None, max_length: Any = None, on_failure: Any = None, instruction: Any = None,
    ) -> io.NodeOutput:
        """All come as lists. The refiner's inputs are not looked at here: each round's node gets them by wire."""
        for restored in image:
            check_single(restored, "Agent Refinement Loop: the restored image")
        if len(image) != len(loop):
            raise ValueError(
                f"Agent Refinement Loop: {len(loop)} image(s) went into Agent Refinement Start, but {len(image)} came "
                "out of the restoration. It has to make one image from each; merge or split lists outside of the loop."
            )
        if rounds[0] == 1:
            return io.NodeOutput(image, loop, report(loop, [], []))
        wiring = Wiring.read(cls.hidden.dynprompt, cls.hidden.unique_id)
        expansion = Expansion(wiring)
        for number in range(2, rounds[0] + 1):
            expansion.add_round(number)
        return expansion.output()


class AgentRefinementRound(io.ComfyNode):
    """The refiner of one round; what goes wrong in it is told with the round's number."""

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
            inputs=[*refiner.inputs, io.Int.Input("round", default=2, min=1, tooltip="Number of the round, from 1.")],
            outputs=refiner.outputs,
        )

    @classmethod
    def execute(
        cls, image: torch.Tensor, previous_prompt: str, vlm: Any, seed: int, max_length: int, on_failure: str,
        round: int, previous_result: torch.Tensor | None = None, instruction: str = "",
    ) -> io.NodeOutput:
        logging.info("Agent Refinement Loop: round %d", round)
        show_on_node(f"Round {round}")
        try:
            return AgentPromptRefiner.execute(
                image, previous_prompt, vlm, seed, max_length, on_failure, previous_result, instruction
            )
        except Exception as error:
            raise RuntimeError(f"Agent Refinement Loop, round {round}: {error}") from error


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
            ],
            outputs=[
                io.Image.Output(display_name="candidates", tooltip="The images, round by round."),
                io.String.Output(display_name="prompts", tooltip="The prompts, round by round."),
                io.String.Output(display_name="report", tooltip="The rounds in words."),
            ],
        )

    @classmethod
    def execute(cls, images: Rounds, prompts: Rounds, changes: Rounds, reasons: Rounds) -> io.NodeOutput:
        texts = in_order(prompts)
        return io.NodeOutput(in_order(images), texts, report(texts, in_order(changes), in_order(reasons), len(images)))


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


def per_round(template: io.Input, name: str) -> io.Autogrow.Input:
    """As many inputs of one kind as there are rounds."""
    names = [str(number) for number in range(1, MAX_ROUNDS + 1)]
    return io.Autogrow.Input(name, io.Autogrow.TemplateNames(template, names, min=0), tooltip=template.tooltip)


def in_order(rounds: Rounds) -> list[Any]:
    return [value for number in sorted(rounds, key=int) for value in rounds[number]]


def report(prompts: list[str], changes: list[str], reasons: list[str], rounds: int = 1) -> str:
    """The rounds in words. All lists are round by round, changes and reasons from round 2 on."""
    images = len(prompts) // rounds
    blocks = []
    for index, prompt in enumerate(prompts):
        title = f"Round {index // images + 1}" + (f", image {index % images + 1}" if images > 1 else "")
        lines = [title, f"Prompt: {prompt}"]
        if index >= images:
            lines += [f"Changed: {changes[index - images]}", f"Why: {reasons[index - images]}"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def check_single(image: torch.Tensor, what: str) -> None:
    if image.shape[0] != 1:
        raise ValueError(
            f"{what} is a batch of {image.shape[0]}. The agent looks at one image at a time: put Rebatch Images (batch "
            "size 1) before Agent Refinement Start, and the loop runs for each image."
        )


@dataclass(frozen=True)
class Wiring:
    """How an artist wired a loop, in the graph or in the expansion that the loop node is in.

    start: id of its Agent Refinement Start. result: the link at the loop's image input. body: the nodes that a round
    runs again, those between the start's prompt (or round number) and the result, or an output node beside it.
    """

    graph: DynamicPrompt
    loop: str
    start: str
    result: Link
    body: frozenset[str]

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


def outputs_beside(graph: DynamicPrompt, loop: str, start: str, varies: Any) -> list[str]:
    """Output nodes that show something of each round: they hang on the start's prompt, but not by way of a loop."""
    nearby = siblings(graph, loop)
    loops = {
        node_id for node_id in nearby
        if graph.get_node(node_id)["class_type"] == LOOP_ID
        and (begin := input_link(graph, node_id, "loop")) is not None and begin[0] == start
    }
    outputs = output_nodes(graph, nearby)
    after = between(graph, lambda link: link[0] in loops, outputs)
    in_a_round = between(graph, varies, outputs)
    return [node_id for node_id in outputs if node_id in in_a_round and node_id not in after]


class Expansion:
    """Rounds 2, 3, ... of a loop as further nodes of the graph."""

    def __init__(self, wiring: Wiring):
        self.wiring = wiring
        self.nodes: dict[str, Any] = {}
        self.images: list[list[Any]] = [[*wiring.result]]
        self.prompts: list[list[Any]] = [[wiring.start, PROMPT_OUTPUT]]
        self.agents: list[Any] = []
        # As they are in the graph: values that came over a link would be unknown to the cache.
        self.inputs = wiring.graph.get_node(wiring.loop)["inputs"]

    def add_round(self, number: int) -> None:
        """The agent of a round and the restoration with its prompt."""
        wiring = self.wiring
        builder = GraphBuilder(f"{wiring.loop}.round_{number}.")
        agent = builder.node(ROUND_ID, id="agent", **self._agent_inputs(number))
        replaced = {(wiring.start, PROMPT_OUTPUT): agent.out(0), (wiring.start, ROUND_OUTPUT): number}
        copies = copy_nodes(builder, wiring.graph, wiring.body, replaced)
        self.images.append(copies[wiring.result[0]].out(wiring.result[1]))
        self.prompts.append(agent.out(0))
        self.agents.append(agent)
        self.nodes |= builder.finalize()

    def _agent_inputs(self, number: int) -> dict[str, Any]:
        return {
            **{name: value for name, value in self.inputs.items() if name not in LOOP_INPUTS},
            "image": [self.wiring.start, IMAGE_OUTPUT],
            "previous_prompt": self.prompts[-1],
            # The raw result of the round before, never the best so far.
            "previous_result": self.images[-1],
            "round": number,
        }

    def output(self) -> io.NodeOutput:
        """The loop's outputs, to be filled in by the node that gathers the rounds."""
        builder = GraphBuilder(f"{self.wiring.loop}.")
        gathered = {
            **{f"images.{number}": link for number, link in enumerate(self.images, 1)},
            **{f"prompts.{number}": link for number, link in enumerate(self.prompts, 1)},
            **{f"changes.{number}": agent.out(1) for number, agent in enumerate(self.agents, 2)},
            **{f"reasons.{number}": agent.out(2) for number, agent in enumerate(self.agents, 2)},
        }
        node = builder.node(CANDIDATES_ID, id="candidates", **gathered)
        return io.NodeOutput(*(node.out(index) for index in range(3)), expand=self.nodes | builder.finalize())


NODES = [AgentRefinementStart, AgentRefinementLoop, AgentRefinementRound, AgentRefinementCandidates]
