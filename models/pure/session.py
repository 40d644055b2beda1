"""A batch of answers being written: the network, its cache, the random numbers, and whoever watches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from .cache import KVCache
from .logits import precise
from .transformer import Chameleon

Phase = Literal["prompt", "text", "image"]

RUN_AHEAD = 2
"""Forwards the device may have queued beyond the one whose `step` is called."""


class GenerationError(RuntimeError):
    """The model did not write a valid answer; the message says where, and what to do."""


class Observer:
    """Override what is wanted; whatever a method raises stops the generation and reaches the caller."""

    def step(self, phase: Phase, done: int, total: int) -> None:
        """After every forward: `done` of `total` in this phase (images read; text tokens; image tokens)."""

    def text(self, ids: Sequence[list[int]], final: bool) -> None:
        """Text token ids so far of each image, every few tokens and once when all are complete."""

    def rows(self, done: int, codes: Callable[[], Tensor]) -> None:
        """When every image has another row of its token grid.

        codes: fetches the codes so far, `[B, done, columns]` long on the CPU; the device waits only if it is called.
        """


class Draws(Protocol):
    """Uniform numbers in 0..1, float64 `[images, count]` on the CPU; each call continues the stream."""

    def take(self, stream: str, count: int) -> Tensor: ...


class SeededDraws:
    """`Draws` from one seed per image, with a stream of its own for every image and every purpose.

    So an image's tokens depend on its seed alone, not on its place in a batch, on the length of a neighbour's text or
    on whether anyone watches. They come from the CPU's generator, which is the same everywhere.
    """

    def __init__(self, seeds: Sequence[int]):
        self.seeds = list(seeds)
        self.generators: dict[str, list[torch.Generator]] = {}

    def take(self, stream: str, count: int) -> Tensor:
        if stream not in self.generators:
            digests = [hashlib.sha256(f"{seed}/{stream}".encode()).digest() for seed in self.seeds]
            numbers = [int.from_bytes(digest[:7], "little") for digest in digests]
            self.generators[stream] = [torch.Generator().manual_seed(number) for number in numbers]
        rows = [torch.rand(count, generator=each, dtype=torch.float64) for each in self.generators[stream]]
        return torch.stack(rows)


class Pacer:
    """Keeps the host at most RUN_AHEAD forwards in front of a CUDA device, so that a stop is prompt.

    It waits for an earlier forward while later ones are queued: the device never idles for it.
    """

    def __init__(self, device: torch.device):
        self.events: list[torch.cuda.Event] = []
        self.active = device.type == "cuda"

    def step(self) -> None:
        if not self.active:
            return
        event = torch.cuda.Event()
        event.record()
        self.events.append(event)
        if len(self.events) > RUN_AHEAD:
            self.events.pop(0).synchronize()


class Session:
    """What all phases of writing share; `cache` holds what the conditional branch has seen.

    `starts[i]` is the position of image i's next token, the length of what its row of the cache holds.
    """

    def __init__(
        self,
        network: Chameleon,
        batch: int,
        capacity: int,
        draws: Draws,
        observer: Observer | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        """capacity: tokens of the longest answer, prompt included. device, dtype: by default the embedding's."""
        weight = network.model.embed_tokens.weight
        self.device, self.dtype = device or weight.device, dtype or weight.dtype
        self.network = network
        self.cache = KVCache.allocate(network.config, batch, capacity, self.dtype, self.device)
        self.starts = [0] * batch
        self.draws = draws
        self.observer = observer or Observer()
        self.pacer = Pacer(self.device)
        self.forwards = 0

    @property
    def batch(self) -> int:
        return len(self.starts)

    def forward(self, ids: Tensor, positions: Tensor, caches: Sequence[KVCache]) -> Tensor:
        self.forwards += 1
        return self.network(ids, positions, caches, dtype=self.dtype)

    def uniforms(self, stream: str, count: int) -> Tensor:
        """The next numbers of a stream, `[B, count]` on the device, in float32 where it has no float64."""
        uniforms = self.draws.take(stream, count)
        return uniforms.to(device=self.device, dtype=precise(self.device), non_blocking=True)

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts, one image at a time; last hidden states `[B, D]`.

        A prompt is long enough to fill the device by itself, and rows of different length need no padding so.
        """
        last = []
        for image, prompt in enumerate(prompts):
            row = self.cache.row(image)
            row.set_span(len(prompt))
            ids = torch.tensor([list(prompt)], device=self.device)
            positions = torch.arange(len(prompt), device=self.device)[None]
            last.append(self.forward(ids, positions, [row])[:, -1])
            self.starts[image] = len(prompt)
            self.pacer.step()
            self.observer.step("prompt", image + 1, len(prompts))
        return torch.cat(last)

    def feed(self, ids: Tensor, positions: Tensor, length: int) -> Tensor:
        """Store tokens `[B, T]` at positions `[B, T]`, all below `length`; hidden states `[B, T, D]`."""
        self.cache.set_span(length)
        return self.forward(ids, positions, [self.cache])

    def append(self, rows: Sequence[Sequence[int]]) -> None:
        """Feed each image its own tokens; shorter rows are padded with tokens nothing will ever see."""
        longest = max(map(len, rows))
        if longest:
            padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)
            starts = torch.tensor(self.starts, device=self.device)[:, None]
            positions = starts + torch.arange(longest, device=self.device)
            self.feed(padded, positions, max(self.starts) + longest)
        self.starts = [start + len(row) for start, row in zip(self.starts, rows, strict=True)]
