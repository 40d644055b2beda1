"""Which part of the image each tile is answerable for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..tiles.grid import Box, TileGrid


def bounds(starts: Sequence[int], tile: int, length: int) -> list[int]:
    """Borders of the cells along one axis, from 0 to `length`: the middles of what neighbouring tiles share."""
    shared = [(after + before + tile) // 2 for before, after in pairwise(starts)]
    return [0, *shared, length]


def tile_cells(grid: TileGrid) -> list[Box]:
    """One cell for each tile, row by row; together they cover the field, and no two overlap.

    Where tiles overlap their predictions are averaged, so that a fault of one shows in its neighbours' tiles too. Its
    cell is where its own weight is the largest.
    """
    rows = bounds(grid.rows, grid.tile_height, grid.height)
    columns = bounds(grid.columns, grid.tile_width, grid.width)
    return [
        Box(top, left, bottom - top, right - left)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def tile_cores(grid: TileGrid) -> list[Box]:
    """What each tile is judged by: its cell without what it shares, as far as half of the cell is left.

    So that the fault of one tile, which averaging carries into the tiles beside it, is not found in them too.
    """
    down, across = grid.overlaps
    cores = []
    for cell in tile_cells(grid):
        top, height = inner(cell.top, cell.height, grid.height, down)
        left, width = inner(cell.left, cell.width, grid.width, across)
        cores.append(Box(top, left, height, width))
    return cores


def inner(start: int, length: int, whole: int, overlap: int) -> tuple[int, int]:
    """(start, length) of a cell's core along one axis."""
    off = min((overlap + 1) // 2, length // 4)
    before, after = (off if start > 0 else 0), (off if start + length < whole else 0)
    return start + before, length - before - after


def neighbours(grid: TileGrid, index: int) -> list[int]:
    """Numbers of the tiles around a tile, diagonal ones too."""
    across, down = len(grid.columns), len(grid.rows)
    row, column = divmod(index, across)
    return [
        r * across + c
        for r in range(max(row - 1, 0), min(row + 2, down))
        for c in range(max(column - 1, 0), min(column + 2, across))
        if (r, c) != (row, column)
    ]
