"""What a node shows while it works: progress inside a sampling step, and a line of text under the node."""

from __future__ import annotations

import comfy.utils
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from torch import Tensor


class TileProgress:
    """Advances the node's bar tile by tile, in step with the sampler's own per-step updates.

    One lives as long as one sampling run and serves all its conditions, run together or one after another. It counts
    evaluations rather than look at the current sigma, which would make the device wait.
    """

    def __init__(self, tiles: int):
        self.tiles = tiles
        self.evaluations = 0
        self.steps = 1
        self.done = 0
        self.bar = comfy.utils.ProgressBar(tiles)
        self.sigma: Tensor | None = None

    def start_evaluation(self, sigma: Tensor | None, sample_sigmas: Tensor | None) -> None:
        """Conditions of one evaluation are run with one and the same sigma tensor."""
        if sample_sigmas is not None:
            self.steps = max(1, sample_sigmas.shape[0] - 1)
        if sigma is None or sigma is not self.sigma:
            self.evaluations += 1
        self.sigma = sigma
        self.done = 0

    def advance(self, tiles: int) -> None:
        """Samplers that evaluate more than once a step outrun the count: then only their own updates show."""
        self.done += tiles
        if self.evaluations <= self.steps:
            value = (self.evaluations - 1) * self.tiles + self.done
            self.bar.update_absolute(value, self.steps * self.tiles)


def show_on_node(text: str) -> None:
    """Show a text under the node that executes now; for a node of an expansion, under the one the artist placed.

    Does nothing outside of a run and without a server.
    """
    from server import PromptServer

    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is None or server is None:
        return
    shown_at = get_progress_state().dynprompt.get_display_node_id(context.node_id)
    server.send_progress_text(text, shown_at, server.client_id)
