"""A batch of answers being written: the network, its caches, and how far each image has got."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cache import KVCache
from .draws import Draws
from .observer import GenerationError, Observer, Pacer
from .transformer import Chameleon


class Session:
    """`starts[i]` is the position of image i's next token, the length of what its row of the cache holds."""

    def __init__(
        self,
        network: Chameleon,
        cache: KVCache,
        starts: Sequence[int],
        draws: Draws,
        observer: Observer,
        dtype: torch.dtype,
        names: Sequence[int] | None = None,
    ):
        self.network = network
        self.cache = cache
        self.starts = list(starts)
        self.draws = draws
        self.observer = observer
        self.dtype = dtype
        self.names = list(names) if names is not None else list(range(1, len(self.starts) + 1))
        self.pacer = Pacer(cache.keys.device)
        self.forwards = 0

    @property
    def device(self) -> torch.device:
        return self.cache.keys.device

    @property
    def batch(self) -> int:
        return len(self.starts)

    def error(self, image: int, message: str) -> GenerationError:
        return GenerationError(f"image {self.names[image]}: {message}")

    def forward(self, ids: Tensor, positions: Tensor, caches: Sequence[KVCache]) -> Tensor:
        self.forwards += 1
        return self.network(ids, positions, caches, dtype=self.dtype)

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

    def select(self, images: Sequence[int]) -> Session:
        """A session of some of the images."""
        cache = self.cache.select(torch.tensor(list(images), device=self.device))
        return Session(
            self.network,
            cache,
            [self.starts[image] for image in images],
            self.draws.select(images),
            self.observer,
            self.dtype,
            [self.names[image] for image in images],
        )
