"""Steps of decoding replayed as CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

import torch

log = logging.getLogger(__name__)


class GraphedSteps:
    """Replays a step as a CUDA graph: the first run of a kind is eager, the second is captured.

    Only for weights that stay where they are; off a CUDA device every run is eager, and where a capture fails all
    further ones are: slower, and with the same tokens.
    """

    def __init__(self, enabled: bool):
        self.enabled = enabled
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        # One pool for all: a step leaves nothing behind that a later one reads, so they may share their memory.
        self.pool = torch.cuda.graph_pool_handle() if enabled else None

    def run(self, kind: Hashable, step: Callable[[], None]) -> None:
        """Run `step`, whose work depends on `kind` and on static tensors only."""
        if not self.enabled or kind not in self.graphs:
            self.graphs[kind] = None
            step()
            return
        graph = self.graphs[kind]
        if graph is None:
            try:
                graph = self.capture(step)
            except RuntimeError as error:
                # Nothing of a step that is being captured has run yet.
                log.warning("RealISR: decoding goes on without CUDA graphs, slower: %s", error)
                self.enabled = False
                step()
                return
            self.graphs[kind] = graph
        graph.replay()

    def capture(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """A graph of what `step` would do. Raises RuntimeError where it cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        # Other threads of the host may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            step()
        return graph
