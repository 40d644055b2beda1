"""What a user sees while tokens are drawn: how many are done, the text as soon as it exists, the rows drawn so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.utils
import numpy as np
from comfy.cli_args import args
from PIL import Image
from torch import Tensor

from ...models.image import to_bytes
from ...models.pure.session import Observer, Phase
from ...models.pure.vqgan import to_image
from ...models.tiles.grid import Box
from ..progress import BEGUN, FINE, show_on_node
from .model import ARRestorer

PREVIEW_SECONDS = 1.0
PREVIEW_SHARE = 0.1
"""Of the time that may go into previews, where decoding one takes longer than a device needs for its share."""

TEXT_SECONDS = 0.25
TEXT_LINES = 8
TEXT_ALLOWANCE = 128
"""Tokens the bar sets aside for a text, whose length nobody knows beforehand; they are 60 to 150."""


class Canvas:
    """The image under restoration: the low-quality one, tiles and rows of tiles replaced as they are decoded."""

    def __init__(self, restorer: ARRestorer, image: Tensor):
        """image: `[H, W, 3]` in 0..1."""
        self.restorer = restorer
        self.pixels = to_bytes(image).cpu().clone()

    def paste(self, box: Box, image: Tensor) -> None:
        """Put `[h, w, 3]` in 0..1 at the top of a box; h may be less than the box's."""
        rows = slice(box.top, box.top + image.shape[0])
        self.pixels[rows, box.left : box.left + box.width] = to_bytes(image).cpu()

    def paste_codes(self, box: Box, codes: Tensor) -> None:
        self.paste(box, to_image(self.restorer.decode(codes[None]))[0])

    def picture(self) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.pixels.numpy()))


class TokenProgress:
    """The node's bar over several runs of the decoder, in tokens. lengths: of each run, text included."""

    def __init__(self, lengths: Sequence[int]):
        self.lengths = list(lengths)
        self.finished = 0
        self.total = sum(self.lengths)
        self.bar = comfy.utils.ProgressBar(self.total)

    def show(self, tokens: int, picture: Image.Image | None = None) -> None:
        """So many tokens of the current run are there. picture: a preview to go with it."""
        before = sum(self.lengths[: self.finished])
        current = self.lengths[self.finished] if self.finished < len(self.lengths) else 0
        preview = None if picture is None else ("JPEG", picture, args.preview_size)
        # Not below what was shown when the node began.
        value = max(before + min(tokens, current), self.total * BEGUN / FINE)
        self.bar.update_absolute(value, self.total, preview)

    def next(self) -> None:
        self.finished += 1
        self.show(0)


class RunObserver(Observer):
    """Follows one run of the decoder over a batch of sequences.

    decode: text of token ids. canvas: where rows are shown, None for no preview. boxes: place of each sequence in the
    canvas, None for a sequence that belongs to another image.
    """

    def __init__(
        self,
        progress: TokenProgress,
        decode: Callable[[Sequence[int]], str],
        canvas: Canvas | None = None,
        boxes: Sequence[Box | None] = (),
    ):
        self.progress, self.decode_text, self.canvas, self.boxes = progress, decode, canvas, boxes
        self.tokens = 0
        self.next_preview = time.monotonic() + PREVIEW_SECONDS
        self.next_text = 0.0

    def step(self, phase: Phase, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if phase == "text":
            self.tokens = min(done, TEXT_ALLOWANCE)
        elif phase == "image":
            self.tokens = TEXT_ALLOWANCE + done
        self.progress.show(self.tokens)

    def text(self, ids: Sequence[list[int]], final: bool) -> None:
        now = time.monotonic()
        if not final and now < self.next_text:
            return
        self.next_text = now + TEXT_SECONDS
        lines = [self.decode_text(sequence).strip() for sequence in ids]
        numbered = [f"{number}. {line}" for number, line in enumerate(lines, start=1)] if len(lines) > 1 else lines
        rest = len(numbered) - TEXT_LINES
        show_on_node("\n".join(numbered[:TEXT_LINES] + ([f"and {rest} more"] if rest > 0 else [])))

    def rows(self, done: int, codes: Callable[[], Tensor]) -> None:
        started = time.monotonic()
        if self.canvas is None or started < self.next_preview:
            return
        for box, drawn in zip(self.boxes, codes(), strict=True):
            if box is not None:
                self.canvas.paste_codes(box, drawn)
        self.progress.show(self.tokens, self.canvas.picture())
        finished = time.monotonic()
        self.next_preview = finished + max(PREVIEW_SECONDS, (finished - started) / PREVIEW_SHARE)
