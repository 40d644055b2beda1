"""Drawing an image token by token, every image of a batch and both guidance branches in one forward.

One step feeds the tokens chosen last, computes the logits of the image tokens, and chooses the next, entirely in
buffers that never move: the host neither reads nor decides anything. Row ends are fed together with the token before
them and never computed, so there are as many forwards as image tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import logits as stages
from .cache import KVCache
from .draws import uniforms_on
from .grid import Grid
from .session import Session
from .vocabulary import BOI, NL, Vocabulary, index_to_id

logger = logging.getLogger(__name__)


class Drawn(NamedTuple):
    """Image indices, entropies (nats) and kept tokens k of each image token, `[B, tokens]`; forwards it took.

    proposed, accepted: drafts of speculative decoding that were tested, and those that stood.
    """

    index: Tensor
    entropy: Tensor
    k: Tensor
    forwards: int
    proposed: int = 0
    accepted: int = 0


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
                logger.warning("RealISR: decoding goes on without CUDA graphs, slower: %s", error)
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


class Buffers:
    """What both ways of decoding keep per image token, and the numbers that go with them."""

    def __init__(self, batch: int, tokens: int, device: torch.device):
        self.index = torch.zeros(batch, tokens, dtype=torch.long, device=device)
        self.entropy = torch.zeros(batch, tokens, device=device)
        self.k = torch.zeros(batch, tokens, dtype=torch.long, device=device)


def branch_caches(session: Session, guided: bool, capacity: int) -> list[KVCache]:
    """The conditional cache and, when guided, one for rows that start at the image."""
    if not guided:
        return [session.cache]
    config = session.network.config
    return [session.cache, KVCache.allocate(config, session.batch, capacity, session.cache.keys.dtype, session.device)]


def branch_offsets(session: Session, branches: int) -> Tensor:
    """Position of BOI in every row, `[branches * B]`: after the text, and 0 where a row starts with it."""
    starts = session.starts + [0] * (session.batch * (branches - 1))
    return torch.tensor(starts, device=session.device)


def check_finite(session: Session, entropies: Tensor, grid: Grid) -> None:
    """Raises GenerationError naming the first image token of `[B, n]` whose entropy is not a number."""
    for image, row in enumerate(entropies.isnan().tolist()):
        if any(row):
            at = row.index(True)
            raise session.error(
                image,
                f"the model's logits are not finite at image token {at + 1} of {grid.tokens} (row "
                f"{at // grid.columns + 1}, column {at % grid.columns + 1}). Load the model in a wider data type "
                "(bf16 or fp32 instead of fp16), or check its file.",
            )


class SequentialDecoder:
    """Draws one grid per image. Use once."""

    def __init__(
        self,
        session: Session,
        grid: Grid,
        sampling: stages.Sampling,
        guidance_scale: float,
        vocabulary: Vocabulary,
        cuda_graphs: bool = False,
    ):
        device, batch = session.device, session.batch
        self.session = session
        self.grid = grid
        self.sampling = sampling
        self.guidance_scale = guidance_scale
        self.vocabulary = vocabulary
        guided = guidance_scale != 1.0
        self.caches = branch_caches(session, guided, grid.length + 3)
        self.branches = len(self.caches)
        self.offsets = branch_offsets(session, self.branches)[:, None]
        self.graphs = GraphedSteps(cuda_graphs and device.type == "cuda")
        self.buffers = Buffers(batch, grid.tokens, device)
        self.uniforms = uniforms_on(device, session.draws.take("image", grid.tokens))
        self.fed = torch.zeros(self.branches * batch, 2, dtype=torch.long, device=device)
        self.fed[:, 1] = NL
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.slot = torch.zeros(1, dtype=torch.long, device=device)
        self.forwards = 0

    def step(self, ids: Tensor) -> None:
        """Feed ids `[rows, T]`, choose the next image token, and move on; no host value depends on a result."""
        ahead = torch.arange(ids.shape[1], device=ids.device)
        positions = self.offsets + self.position + ahead
        hidden = self.session.network(ids, positions, self.caches, dtype=self.session.dtype)
        logits = self.session.network.image_logits(hidden[:, -1])
        if self.branches == 2:
            conditional, unconditional = logits.chunk(2)
            logits = stages.guide(conditional, unconditional, self.guidance_scale)
        p, entropy, k = stages.distribution(logits, self.sampling)
        index = stages.draw(p, self.uniforms.index_select(1, self.slot)[:, 0])
        self.buffers.index.index_copy_(1, self.slot, index[:, None])
        self.buffers.entropy.index_copy_(1, self.slot, entropy[:, None])
        self.buffers.k.index_copy_(1, self.slot, k[:, None])
        self.fed[:, 0] = index_to_id(index).repeat(self.branches)
        self.position += ids.shape[1]
        self.slot += 1

    def advance(self, ids: Tensor, length: int) -> None:
        """Take a step after which the image has `length` tokens in the caches."""
        for cache, start in zip(self.caches, (max(self.session.starts), 0), strict=False):
            cache.set_span(start + length)
        kind = (ids.shape[1], *(cache.span for cache in self.caches))
        self.graphs.run(kind, lambda: self.step(ids))
        self.forwards += 1

    def codes(self, rows: int) -> Tensor:
        """Codes of the first rows, `[B, rows, columns]` on the CPU."""
        index = self.buffers.index[:, : rows * self.grid.columns].cpu()
        return self.vocabulary.code_of_index()[index].unflatten(1, (rows, self.grid.columns))

    def decode(self) -> Drawn:
        """Draw the whole grid. Raises GenerationError where logits are not finite, at the latest after their row."""
        session, columns = self.session, self.grid.columns
        opening = torch.tensor([[BOI, *self.grid.sizes()]], device=session.device)
        length = opening.shape[1]
        self.advance(opening.expand(self.fed.shape[0], -1), length)
        for token in range(1, self.grid.tokens + 1):
            session.pacer.step()
            session.observer.step("image", token, self.grid.tokens)
            row_done = token % columns == 0
            if row_done:
                check_finite(session, self.buffers.entropy[:, :token], self.grid)
                session.observer.rows(token // columns, partial(self.codes, token // columns))
            if token < self.grid.tokens:
                width = 2 if row_done else 1
                length += width
                self.advance(self.fed[:, :width], length)
        session.forwards += self.forwards
        buffers = self.buffers
        return Drawn(buffers.index.cpu(), buffers.entropy.cpu(), buffers.k.cpu(), self.forwards)
