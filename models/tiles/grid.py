"""Where tiles lie on a 2-D field. Sizes are in the field's own unit.

A tile never reaches outside the field, unless the field goes on at its other side: then the tile does, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Wrap = Literal["none", "left-right", "both"]
"""Over which of its edges a field goes on at its other side."""

WRAPS: tuple[Wrap, ...] = get_args(Wrap)


def wrapped_axes(wrap: Wrap) -> tuple[bool, bool]:
    """Whether a field goes on (down, across) its edges."""
    return wrap == "both", wrap != "none"


def tile_starts(length: int, tile: int, overlap: int, align: int = 1) -> list[int]:
    """First cells of the tiles along a side of `length`; the last tile is moved back to end at the border.

    Tiles advance by whole multiples of `align` cells; length and tile are expected to be such multiples.
    """
    if length <= tile:
        return [0]
    stride = max((tile - overlap) // align * align, align)
    starts = list(range(0, length - tile + 1, stride))
    if starts[-1] + tile < length:
        starts.append(length - tile)
    return starts


def ring_starts(length: int, tile: int, overlap: int, align: int = 1) -> list[int]:
    """The same along a side that goes on at its other end: tiles at even distances, two at least.

    The edge comes to lie as far as can be from where tiles begin and end, so that it is a place like any other; with an
    even number of tiles they also lie alike after a shift by half of the length. Raises ValueError for a length that is
    no multiple of `align`.
    """
    if length % align:
        raise ValueError(
            f"Tiles around the edge need a side that is a multiple of {align} cells, this one has {length}. Resize the "
            "image, or set wrap to none."
        )
    stride = max((tile - overlap) // align * align, align)
    count = max(-(-length // stride), 2)
    step = length / count
    rest = tile % step
    offset = (step - rest) / 2 if 2 * rest <= step else -rest / 2
    first = math.floor(offset / align) * align
    return sorted((first + index * length // count // align * align) % length for index in range(count))


def segments(start: int, size: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Of a tile that may reach over the end of a side: (cells of the side, cells of the tile), in one or two parts."""
    inside = min(size, length - start)
    yield slice(start, start + inside), slice(0, inside)
    if inside < size:
        yield slice(0, size - inside), slice(inside, size)


@dataclass(frozen=True)
class Box:
    """A tile's place: rows [top, top + height), columns [left, left + width), around the edge where it is beyond."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, field: Tensor, scale: int = 1) -> Tensor:
        """The tile's part of `[..., H, W]`; `scale` cells of `field` stand for one of the grid's."""
        rows = slice(self.top * scale, (self.top + self.height) * scale)
        columns = slice(self.left * scale, (self.left + self.width) * scale)
        if rows.stop > field.shape[-2]:
            field = torch.cat([field[..., rows.start :, :], field[..., : rows.stop - field.shape[-2], :]], dim=-2)
            rows = slice(0, self.height * scale)
        if columns.stop > field.shape[-1]:
            field = torch.cat([field[..., columns.start :], field[..., : columns.stop - field.shape[-1]]], dim=-1)
            columns = slice(0, self.width * scale)
        return field[..., rows, columns]

    def add_to(self, field: Tensor, tile: Tensor) -> None:
        """Add a tile `[..., height, width]` to its place in `[..., H, W]`."""
        for rows, tile_rows in segments(self.top, self.height, field.shape[-2]):
            for columns, tile_columns in segments(self.left, self.width, field.shape[-1]):
                field[..., rows, columns].add_(tile[..., tile_rows, tile_columns])


@dataclass(frozen=True)
class TileGrid:
    """Equal tiles covering a field of `height` x `width` cells, row by row."""

    height: int
    width: int
    tile_height: int
    tile_width: int
    overlap: int | tuple[int, int]
    """Cells shared by neighbours, one number or (down, across)."""
    align: int = 1
    """Tiles start at multiples of it, where the field's sides are multiples too."""
    wrap: Wrap = "none"

    @classmethod
    def fitted(
        cls,
        size: tuple[int, int],
        tile: tuple[int, int],
        overlap: tuple[int, int],
        align: int = 1,
        wrap: Wrap = "none",
    ) -> TileGrid:
        """Tiles of about the size asked for, over a field of `size`; all arguments are (height, width).

        Along each axis the tile is rounded down to a multiple of `align`, and cut to the field.
        """
        height, width = (
            min(max(side // align * align, align), length) for side, length in zip(tile, size, strict=True)
        )
        return cls(*size, height, width, overlap, align, wrap)

    def scaled(self, factor: int) -> TileGrid:
        """The same tiles over a field with `factor` times as many cells along each axis."""
        down, across = self.overlaps
        return TileGrid(
            self.height * factor,
            self.width * factor,
            self.tile_height * factor,
            self.tile_width * factor,
            (down * factor, across * factor),
            self.align * factor,
            self.wrap,
        )

    def lies_as(self, other: TileGrid) -> bool:
        """Whether the tiles are the same, however they were asked for."""
        same_field = (self.height, self.width) == (other.height, other.width)
        return self == other or (same_field and self.boxes == other.boxes)

    def __str__(self) -> str:
        return f"{len(self)} tiles of {self.tile_height}x{self.tile_width} cells over {self.height}x{self.width}"

    @property
    def overlaps(self) -> tuple[int, int]:
        return self.overlap if isinstance(self.overlap, tuple) else (self.overlap, self.overlap)

    @property
    def rows(self) -> list[int]:
        starts = ring_starts if wrapped_axes(self.wrap)[0] else tile_starts
        return starts(self.height, self.tile_height, self.overlaps[0], self.align)

    @property
    def columns(self) -> list[int]:
        starts = ring_starts if wrapped_axes(self.wrap)[1] else tile_starts
        return starts(self.width, self.tile_width, self.overlaps[1], self.align)

    @property
    def boxes(self) -> list[Box]:
        return [Box(top, left, self.tile_height, self.tile_width) for top in self.rows for left in self.columns]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def batches(self, size: int) -> Iterator[tuple[int, list[Box]]]:
        """Runs of at most `size` tiles: (index of the first, boxes)."""
        boxes = self.boxes
        for first in range(0, len(boxes), size):
            yield first, boxes[first : first + size]


@dataclass(frozen=True)
class Panes:
    """A field made of `count` equal panes next to each other along `dim`, all tiled alike.

    A tile is then the crop of every pane at the same box, joined as the panes are: the field's own kind, smaller.
    """

    count: int = 1
    dim: Literal[-1, -2] = -1

    def split(self, field: Tensor) -> tuple[Tensor, ...]:
        """The panes of `[..., H, W]`, as views."""
        return field.chunk(self.count, self.dim)

    def join(self, panes: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(panes), self.dim)

    def crop(self, field: Tensor, box: Box, scale: int = 1) -> Tensor:
        """One tile of `[..., H, W]`; `scale` as in Box.crop."""
        return self.join([box.crop(pane, scale) for pane in self.split(field)])

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the field whose panes are `height` x `width`."""
        return (height * self.count, width) if self.dim == -2 else (height, width * self.count)


ONE_PANE = Panes()


def vosr_tile_grid(
    height: int,
    width: int,
    tile_pixels: int,
    overlap_pixels: int,
    downscale: int = 8,
    patch: int = 2,
    wrap: Wrap = "none",
) -> TileGrid | None:
    """The tile grid VOSR uses over a latent of `height` x `width`, or None when one tile holds all of it.

    Tiles are square, as trained, an even number of patches, and never larger than the shorter side: a field that is
    not square is always tiled. Neighbours share at least an eighth of the tile asked for. tile_pixels, overlap_pixels:
    in image pixels, `downscale` per latent cell. wrap: over these edges there are tiles, too, and always several.
    """
    tile = max(math.floor(tile_pixels / downscale) // patch * patch, patch)
    overlap = max(overlap_pixels // downscale, tile // 8)
    tile = min(tile, height, width)
    if wrap != "none":
        return TileGrid(height, width, tile, tile, min(overlap, tile - 1), patch, wrap)
    if height <= tile and width <= tile:
        return None
    return TileGrid(height, width, tile, tile, min(overlap, tile - 1))
