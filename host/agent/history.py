"""What the rounds of a refinement loop made, kept for the next time the loop runs.

ComfyUI's default cache drops the results of expanded nodes as soon as another prompt executes its first node, before
the expansion can name them again. So the loop keeps its rounds in a value on a wire of the artist's own graph: the host
holds it as long as it holds the output of the node that made it, counts its images, and drops it with them.
"""

from __future__ import annotations

import json
import time
import uuid
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

from comfy_execution.graph import DynamicPrompt
from torch import Tensor

from ..graph_expansion import upstream
from .edits import NO_EDITS, Edits
from .timeline import Row


class RoundResult(NamedTuple):
    """One round. Each list has an entry per restored image."""

    images: list[Tensor]
    """`[1, H, W, C]` each."""
    prompts: list[str]
    changes: list[str]
    """What the agent says it changed."""
    reasons: list[str]
    """Why."""
    told: Sequence[Row] = ()
    """What the loop's timeline shows of it."""


class Circumstances(NamedTuple):
    """All that decides what rounds 2, 3, ... make beside the first: they are the same rounds where these are equal.

    The initial prompt, which every round is told, is part of none of them: with another one the start runs again, and
    has a new history.
    """

    loop: str
    """Id of the loop node."""
    wiring: str
    """The graph that leads to its image."""
    agent: tuple[Any, ...]
    """The refiner's inputs."""


class Run(NamedTuple):
    """The rounds made under some circumstances."""

    key: str
    """Names it to the nodes of its rounds."""
    circumstances: Circumstances
    first: list[Tensor]
    """The images of round 1."""
    rounds: list[RoundResult]
    """From round 2 on."""
    edits: Edits
    """The prompts that the artist wrote for rounds, where those made are such."""
    told: list[Row]
    """What the timeline shows of round 1."""

    def fits(self, circumstances: Circumstances, first: list[Tensor]) -> bool:
        """The images of round 1 have to be the same objects: the host restores anew whenever anything has changed."""
        same = len(first) == len(self.first) and all(a is b for a, b in zip(first, self.first, strict=True))
        return same and circumstances == self.circumstances

    def edited(self, edits: Edits) -> Run:
        """A run with other edits: it has the rounds before the first of them that differs."""
        changed = [number for number in {**self.edits, **edits} if self.edits.get(number) != edits.get(number)]
        kept = self.rounds[: min(changed) - 2] if changed else self.rounds
        return Run(uuid.uuid4().hex, self.circumstances, self.first, kept, edits, self.told)


class RefinementHistory(list[Run]):
    """The runs of the loops that begin at one start, at most one of each loop.

    A list of tuples, so that the host's memory accounting finds the images.
    """

    def __init__(self, prompt: str, image: Tensor):
        super().__init__()
        self.prompt = prompt
        """Of round 1."""
        self.image = image
        """The low-quality image `[1, h, w, C]` that the start gives out too."""
        self.total = 0
        """Rounds that are being made, 0 before that is known."""
        self.answers: dict[tuple[str, int], tuple[str, str, str]] = {}
        """(key of a run, number of a round) -> the agent's texts for this start's image, for a round whose restoration
        did not finish."""
        self.begun: dict[tuple[str, int], float] = {}
        """The same -> time.monotonic() at which the round began; (id of a loop, 1) for its first round."""
        self.halted = ""
        """Key of the run that was last ended early."""

    def continued(self, circumstances: Circumstances, first: list[Tensor], edits: Edits = NO_EDITS) -> Run:
        """The run that goes on; a new one, in place of the loop's last, where something is different.

        A run that was ended early goes on under another key: the host may know what its nodes did not make.
        """
        for index, run in enumerate(self):
            if run.fits(circumstances, first):
                if run.edits != edits or run.key == self.halted:
                    self[index] = run.edited(edits)
                return self[index]
        self[:] = [run for run in self if run.circumstances.loop != circumstances.loop]
        self.append(Run(uuid.uuid4().hex, circumstances, first, [], edits, []))
        return self[-1]

    def seconds(self, key: str, round_number: int) -> float | None:
        """How long a round took that ends now; None where its beginning was not seen."""
        began = self.begun.pop((key, round_number), None)
        return None if began is None else time.monotonic() - began

    def record(self, key: str, round_number: int, result: RoundResult) -> None:
        """Keep a round of a run. Rounds after it are dropped; a run that is not there any more is left alone."""
        for run in self:
            if run.key == key:
                run.rounds[round_number - 2 :] = [result]
                self.answers.pop((key, round_number), None)

    def recall(self, key: str, round_number: int) -> RoundResult:
        """A round that was kept. Raises LookupError when it is gone."""
        for run in self:
            if run.key == key and round_number - 2 < len(run.rounds):
                return run.rounds[round_number - 2]
        raise LookupError(f"round {round_number} was kept and is gone; queue the workflow again")


def circumstances(
    graph: DynamicPrompt, loop: str, result: str, vlm: Sequence[Any], options: Sequence[Any]
) -> Circumstances:
    """Of the loop with this id, whose image comes from node `result`.

    vlm: the agents that came over the wire, which are not kept alive for the comparison. options: other inputs of the
    refiner, compared as they are.
    """
    nodes = {node_id: graph.get_node(node_id) for node_id in upstream(graph, [result])}
    described = {node_id: [node["class_type"], node["inputs"]] for node_id, node in nodes.items()}
    wiring = json.dumps(described, sort_keys=True, default=repr)
    return Circumstances(loop, wiring, (*map(weakref.ref, vlm), *options))
