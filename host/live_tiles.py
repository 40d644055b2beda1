"""The picture that a node shows while it samples in tiles, and the line under it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import latent_preview
import numpy as np
import torch
import torch.nn.functional as F
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image
from torch import Tensor

from ..models.image import to_bytes
from ..models.tiles.grid import ONE_PANE, Box, Panes
from .graph_expansion import running_item
from .progress import TileProgress, show_on_node
from .types import Model

LIVE = "realisr_live"
"""Of a model's options: the LiveTiles of the run."""

SHARE = 1 / 8
"""Of the time that may go into drawing."""

FRAME_SECONDS = 0.5
LINE_SECONDS = 0.25
"""Between two pictures and two lines, at least."""

KNOWN_SECONDS = 1.0
"""Of work before a time left is told."""

OUTLINE, SHADOW, LINE = (255, 200, 40), (0, 0, 0), 2
EMPTY = (56, 56, 56)

Clock = Callable[[], float]
Numbered = Sequence[tuple[int, Box]]
"""Tiles with their index in the grid, in latent cells."""


class LiveTiles:
    """One sampling run, as it is seen: finished tiles on top of what was there before, the current ones outlined.

    label: put before the line. later: how much work comes after this run, in units of the run. pictures: whether to
    draw any. clock: in seconds.
    """

    def __init__(
        self,
        previewer: latent_preview.LatentPreviewer | None,
        label: str = "",
        later: float = 0.0,
        pictures: bool = True,
        clock: Clock = time.monotonic,
    ):
        self.previewer, self.label, self.later, self.clock = previewer, label, later, clock
        self.pictures = pictures
        self.panes = ONE_PANE
        self.pane_size = (0, 0)
        self.pending: list[tuple[Box | None, Tensor]] = []
        """What is not drawn yet: tiles, and whole latents as None."""
        self.outlined: list[Box] = []
        self.names = ""
        self.next_frame = self.next_line = 0.0
        self.drawing = 0.0
        """Seconds spent on pictures."""
        self.started: float | None = None
        self.canvas: Image.Image | None = None
        self.pixels_per_cell = (1.0, 1.0)

    def start_from(self, picture: Tensor, cell: int) -> None:
        """What the run starts from, `[1, H, W, 3]` in 0..1; a latent cell stands for `cell` pixels of it."""
        if self.pictures:
            self.lay_out(picture, picture.shape[1] / cell, picture.shape[2] / cell)

    # --- what the sampler tells --------------------------------------------------------------------------------------

    def lay(self, panes: Panes, pane_size: tuple[int, int]) -> None:
        """How the latent is made up. pane_size: (height, width) in cells."""
        self.panes, self.pane_size = panes, pane_size

    def begin(self, latent: Tensor) -> None:
        """`[B, C, h, w]` as the model sees it, what the run starts from; drawn where there is no picture."""
        if not self.pictures or self.canvas is not None or latent.ndim != 4:
            return
        height, width = latent.shape[-2:]
        self.lay_out(torch.tensor(EMPTY).div(255).expand(1, 1, 1, 3), height, width)
        if latent.any():
            self.pending.append((None, latent))

    def running(self, tiles: Numbered, progress: TileProgress) -> None:
        """These tiles are run next."""
        if self.started is None:
            self.started = self.clock()
        first, last = tiles[0][0] + 1, tiles[-1][0] + 1
        self.names = f"tile {first}" if first == last else f"tiles {first} to {last}"
        self.names += f" of {progress.tiles}"
        self.outlined = [box for _, box in tiles]
        self.refresh(progress)

    def finished(self, tiles: Numbered, denoised: Sequence[Tensor]) -> None:
        """These tiles have come to that, `[C, h, w]` each, panes side by side."""
        if self.canvas is not None and self.previewer is not None:
            self.pending += [(box, tile.clone()[None]) for (_, box), tile in zip(tiles, denoised, strict=True)]

    def stepped(self, denoised: Tensor, progress: TileProgress) -> None:
        """A step is over, with this estimate `[B, C, h, w]` of the whole."""
        if self.started is None:
            self.started = self.clock()
        # A decoder larger than a matrix is left to the tiles, where there are several.
        cheap = isinstance(self.previewer, latent_preview.Latent2RGBPreviewer)
        if self.canvas is not None and not denoised.is_nested and denoised.ndim == 4 and (cheap or not self.outlined):
            self.pending = [(None, denoised[:1])]
        self.outlined, self.names = [], ""
        self.refresh(progress)

    def ended(self, progress: TileProgress) -> None:
        """The run is over."""
        parts = [self.label, f"{progress.tiles} tiles" if progress.tiles > 1 else ""]
        parts.append(f"{progress.steps} steps" if progress.steps > 1 else "")
        seconds = 0.0 if self.started is None else self.clock() - self.started
        show_on_node(joined(*parts, f"done in {minutes(seconds)}"))

    # --- what is shown -----------------------------------------------------------------------------------------------

    def refresh(self, progress: TileProgress) -> None:
        """Show what there is, when it is time to."""
        now = self.clock()
        if now >= self.next_line:
            self.next_line = now + LINE_SECONDS
            show_on_node(self.line(progress, now))
        if self.canvas is None or now < self.next_frame:
            return
        if self.pending:
            # What the device has still to do is no time of drawing.
            self.pending[-1][1].flatten()[:1].cpu()
        start = self.clock()
        progress.show(("JPEG", self.frame(), args.preview_size))
        finish = self.clock()
        self.drawing += finish - start
        self.next_frame = finish + max(FRAME_SECONDS, (finish - start) * (1 / SHARE - 1))

    def line(self, progress: TileProgress, now: float) -> str:
        parts = [self.label, self.names]
        if progress.steps > 1:
            parts.append(f"step {min(progress.step + 1, progress.steps)} of {progress.steps}")
        elapsed = 0.0 if self.started is None else now - self.started
        if progress.fraction > 0 and elapsed >= KNOWN_SECONDS:
            left = elapsed / progress.fraction * (1 - progress.fraction + self.later)
            parts.append(f"{minutes(left)} left")
        return joined(*parts)

    def lay_out(self, picture: Tensor, height: float, width: float) -> None:
        """A canvas of the host's preview size from `[1, H, W, 3]`. height, width: in cells."""
        shape, longest = height / width, args.preview_size
        size = (longest, max(round(longest * shape), 1)) if shape <= 1 else (max(round(longest / shape), 1), longest)
        # As many pixels as are needed for a mean, not all of a large picture.
        stride = max(1, min(picture.shape[1] // size[1], picture.shape[2] // size[0]) // 2)
        few = picture[:, ::stride, ::stride, :3].float().movedim(-1, 1)
        small = F.interpolate(few, (size[1], size[0]), mode="bilinear", antialias=True)
        self.canvas = Image.fromarray(to_bytes(small[0].movedim(0, -1)).cpu().contiguous().numpy())
        self.pixels_per_cell = (size[1] / height, size[0] / width)

    def frame(self) -> Image.Image:
        """The canvas with what is pending in it, and the current tiles outlined."""
        assert self.canvas is not None
        if self.previewer is not None:
            for box, latent in self.pending:
                self.paste(box, latent.shape[-2:], self.previewer.decode_latent_to_preview(latent))
        self.pending = []
        shown = np.array(self.canvas)
        current = np.zeros(shown.shape[:2], dtype=bool)
        places = [part for box in self.outlined for place in self.places(box) for part in self.around(place)]
        for left, top, right, bottom in places:
            current[max(top, 0) : max(bottom, top + 1), max(left, 0) : max(right, left + 1)] = True
        # Tiles that run together lie over one another: one line around them all.
        shown[edge(current, 2 * LINE)] = SHADOW
        shown[edge(current, LINE)] = OUTLINE
        return Image.fromarray(shown)

    def paste(self, box: Box | None, cells: Sequence[int], decoded: Image.Image) -> None:
        """A tile, or with None the whole. cells: (height, width) of its latent."""
        if box is None:
            down, across = self.pixels_per_cell
            self.lay_over(decoded, (0, 0, round(cells[1] * across), round(cells[0] * down)))
            return
        places = self.places(box)
        for index, place in enumerate(places):
            width, height = decoded.size
            if self.panes.dim == -1:
                pane = (width * index // len(places), 0, width * (index + 1) // len(places), height)
            else:
                pane = (0, height * index // len(places), width, height * (index + 1) // len(places))
            self.lay_over(decoded.crop(pane), place)

    def lay_over(self, picture: Image.Image, place: tuple[int, int, int, int]) -> None:
        assert self.canvas is not None
        left, top, right, bottom = place
        size = (max(right - left, 1), max(bottom - top, 1))
        resized = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        for part in self.around(place):
            self.canvas.paste(resized, part[:2])

    def around(self, place: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
        """A place, and again where what is beyond the right and bottom edge comes in at the other side."""
        assert self.canvas is not None
        width, height = self.canvas.size
        left, top, right, bottom = place
        return [
            (left - across, top - down, right - across, bottom - down)
            for down in ((0, height) if bottom > height + 1 else (0,))
            for across in ((0, width) if right > width + 1 else (0,))
        ]

    def places(self, box: Box) -> list[tuple[int, int, int, int]]:
        """(left, top, right, bottom) of a tile in every pane, in pixels of the canvas."""
        down, across = self.pixels_per_cell
        found = []
        for pane in range(self.panes.count):
            top = box.top + (pane * self.pane_size[0] if self.panes.dim == -2 else 0)
            left = box.left + (pane * self.pane_size[1] if self.panes.dim == -1 else 0)
            right, bottom = left + box.width, top + box.height
            found.append((round(left * across), round(top * down), round(right * across), round(bottom * down)))
        return found


def edge(area: np.ndarray, width: int) -> np.ndarray:
    """The outermost `width` pixels of an area `[h, w]`."""
    padded, same = np.pad(area, width), slice(width, -width)
    before, after = slice(None, -2 * width), slice(2 * width, None)
    inner = padded[before, same] & padded[after, same] & padded[same, before] & padded[same, after]
    return area & ~inner


def minutes(seconds: float) -> str:
    """1:20, or 2:03:00 from an hour on."""
    whole = max(round(seconds), 0)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def refused() -> bool:
    """Whether someone chose to see no previews; the host's default is none as well, and is no such choice."""
    if args.preview_method != LatentPreviewMethod.NoPreviews:
        return False
    if any(argument.split("=")[0] == "--preview-method" for argument in sys.argv):
        return True
    return latent_preview.default_preview_method != LatentPreviewMethod.NoPreviews or chosen_with_prompt() == "none"


def chosen_with_prompt() -> str | None:
    """The preview method in the browser's settings, which comes with what it queues."""
    item = running_item()
    return None if item is None else item[3].get("preview_method")


def previewer_for(model: Model) -> latent_preview.LatentPreviewer | None:
    """The host's way to look at the model's latents; the quick one where the host has none chosen."""
    space = model.model.latent_format
    if args.preview_method != LatentPreviewMethod.NoPreviews:
        return latent_preview.get_previewer(model.load_device, space)
    if space.latent_rgb_factors is None:
        return None
    return latent_preview.Latent2RGBPreviewer(
        space.latent_rgb_factors, space.latent_rgb_factors_bias, space.latent_rgb_factors_reshape
    )


def live_tiles(model: Model, label: str = "", later: float = 0.0) -> LiveTiles:
    """What a run of the model shows; see LiveTiles. No pictures where the host's previews are switched off."""
    if refused():
        return LiveTiles(None, label, later, pictures=False)
    return LiveTiles(previewer_for(model), label, later)


def numbered(index: int, count: int) -> str:
    """Which image of a batch it is; nothing where it is the only one."""
    return f"image {index + 1} of {count}" if count > 1 else ""


class Labelled(Protocol):
    @property
    def label(self) -> str: ...


def tell(shown: Labelled | None, stage: str) -> None:
    """Say what is done before and after the tiles, if anything is to be shown."""
    if shown is not None:
        show_on_node(joined(shown.label, stage))


def joined(*parts: str) -> str:
    """What there is of parts, as one line."""
    return " · ".join(filter(None, parts))
