"""Where the nodes of a workflow go: left to right in groups, without a browser and without chance.

Groups become columns in the order in which data flows through them, and so do the nodes within a group, so that every
link runs to the right. Groups that wait for the same others stand below one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

GAP = 30
"""Between the columns and between the nodes of a column, in pixels as all lengths here."""
GROUP_GAP = 30
GROUP_PADDING = 15
GROUP_TITLE = 50
"""From a group's upper edge to its first node."""
WINDOW = (1600, 1000)
HIGHEST = 1500
"""A column that would be higher is continued beside itself."""
WORTH_A_SECOND_ROW = 1.15
MOST_BACKWARD = 0.1
"""Of all links; those of a whole workflow stay below it."""

LEAST_ZOOM = 0.6

Links = Sequence[tuple[int, int]]

Column = list[list[int]]
"""Layers that stand below one another, most often one."""


@dataclass(frozen=True)
class Box:
    """A node as it is drawn, title bar included."""

    width: float
    height: float


@dataclass
class Rectangle:
    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height


@dataclass
class Layout:
    """nodes: id -> where it is drawn. groups: one rectangle for each group that was given, in order."""

    nodes: dict[int, Rectangle] = field(default_factory=dict)
    groups: list[Rectangle] = field(default_factory=list)

    def bounds(self) -> Rectangle:
        return around([*self.nodes.values(), *self.groups])


def around(rectangles: Iterable[Rectangle]) -> Rectangle:
    found = list(rectangles)
    x, y = min(each.x for each in found), min(each.y for each in found)
    return Rectangle(x, y, max(each.right for each in found) - x, max(each.bottom for each in found) - y)


def fit_zoom(width: float, height: float) -> float:
    """The zoom at which a window of 1600 x 1000 shows all of it."""
    return min(WINDOW[0] / width, WINDOW[1] / height)


def backward(nodes: Mapping[int, Rectangle], links: Links) -> int:
    """How many links end no further right than they begin."""
    return sum(nodes[target].x <= nodes[source].x for source, target in links)


def layers(members: Sequence[int], links: Links) -> list[list[int]]:
    """The members in columns: each right of all that it reads; what reads no other just left of its first reader."""
    inside = set(members)
    links = [link for link in links if link[0] in inside and link[1] in inside and link[0] != link[1]]
    depth = dict.fromkeys(members, 0)
    for _ in members:  # a cycle ends here too, with its links drawn as they come
        for source, target in links:
            depth[target] = max(depth[target], min(depth[source] + 1, len(members) - 1))
    read = {target for _, target in links}
    for member in members:
        readers = [depth[target] for source, target in links if source == member]
        if member not in read and readers:
            depth[member] = min(readers) - 1
    used = sorted(set(depth.values()))
    return [[member for member in members if depth[member] == each] for each in used]


def in_order(column: list[int], links: Links, placed: Mapping[int, Rectangle]) -> list[int]:
    """Nodes that read from above stand above; those that read nothing keep their place."""

    def height(member: int) -> float:
        sources = [placed[source] for source, target in links if target == member and source in placed]
        return mean(each.y + each.height / 2 for each in sources) if sources else float("-inf")

    return sorted(column, key=height)


def split(column: Sequence[int], height: Callable[[int], float]) -> list[list[int]]:
    """A column in as many as its height needs, of about the same height."""
    total = sum(height(each) for each in column)
    share = total / max(1, -(-total // HIGHEST))
    columns: list[list[int]] = [[]]
    filled = 0.0
    for each in column:
        if columns[-1] and filled + height(each) / 2 > share * len(columns):
            columns.append([])
        columns[-1].append(each)
        filled += height(each)
    return columns


def place(columns: Sequence[Column], links: Links, boxes: Mapping[int, Box], x: float, y: float) -> Layout:
    """Columns of nodes from (x, y) to the right and down."""
    layout = Layout()
    for unordered in columns:
        ordered = [node for layer in unordered for node in in_order(layer, links, layout.nodes)]
        for column in split(ordered, lambda each: boxes[each].height + GAP):
            width = max(boxes[each].width for each in column)
            top = y
            for each in column:
                layout.nodes[each] = Rectangle(x, top, width, boxes[each].height)
                top += boxes[each].height + GAP
            x += width + GAP
    return layout


def arrange(boxes: Mapping[int, Box], links: Links, groups: Sequence[Sequence[int]], beside: float = 0) -> Layout:
    """Place every node in `boxes`, in the order given there where the links leave a choice.

    groups: the ids in each; a node in none stands like a group of its own. beside: the width that is taken at the left.
    Returns a layout that begins at (0, 0).
    Where that would be too wide to read, some neighbouring columns of a group are stacked (few links then lead back)
    and the groups may fill a second row.
    """
    grouped = {member for group in groups for member in group}
    blocks = [*map(list, groups), *([node] for node in boxes if node not in grouped)]
    columns = [[[layer] for layer in layers(block, links)] for block in blocks]
    best = in_rows(columns, len(groups), boxes, links, beside)
    while zoom(best, beside) < LEAST_ZOOM:
        tried = [stacked(columns, block, at) for block in range(len(blocks)) for at in range(len(columns[block]) - 1)]
        made = [(in_rows(each, len(groups), boxes, links, beside), each) for each in tried]
        fitting = [
            (layout, each)
            for layout, each in made
            if few_backward(layout, links) and zoom(layout, beside) > zoom(best, beside)
        ]
        if not fitting:
            break
        best, columns = min(fitting, key=lambda made: (backward(made[0].nodes, links), -zoom(made[0], beside)))
    return best


def stacked(columns: Sequence[list[Column]], block: int, at: int) -> list[list[Column]]:
    """The columns of all blocks, with one of a block put below the one at its left."""
    of_block = columns[block]
    merged = [*of_block[:at], of_block[at] + of_block[at + 1], *of_block[at + 2 :]]
    return [*columns[:block], merged, *columns[block + 1 :]]


def few_backward(layout: Layout, links: Links) -> bool:
    return backward(layout.nodes, links) < MOST_BACKWARD * len(links)


def in_rows(
    columns: Sequence[list[Column]], titled: int, boxes: Mapping[int, Box], links: Links, beside: float
) -> Layout:
    """Blocks, given by their columns, in one row, or in two where those show much larger in a window."""
    block_of = {
        node: number for number, block in enumerate(columns) for column in block for layer in column for node in layer
    }
    between = [(block_of[a], block_of[b]) for a, b in links if block_of[a] != block_of[b]]
    ordered = layers(range(len(columns)), between)
    made = [place(block, links, boxes, padding(number < titled), GROUP_TITLE) for number, block in enumerate(columns)]
    best = rows([ordered], made, titled)
    for cut in range(1, len(ordered)):
        other = rows([ordered[:cut], ordered[cut:]], made, titled)
        if few_backward(other, links) and zoom(other, beside) > zoom(best, beside) * WORTH_A_SECOND_ROW:
            best = other
    return best


def padding(titled: bool) -> int:
    return GROUP_PADDING if titled else 0


def zoom(layout: Layout, beside: float) -> float:
    bounds = layout.bounds()
    return fit_zoom(bounds.width + beside, bounds.height)


def rows(split_columns: Sequence[Sequence[Sequence[int]]], made: Sequence[Layout], titled: int) -> Layout:
    """Blocks in rows of columns. titled: as many of the first blocks have a rectangle around them."""
    layout = Layout(groups=[Rectangle(0, 0, 0, 0)] * titled)
    heights = [around(each.nodes.values()).bottom + padding(number < titled) for number, each in enumerate(made)]
    top = 0.0
    for columns in split_columns:
        x = 0.0
        bottom = top
        for column in columns:
            for stack in split(column, lambda number: heights[number] + GROUP_GAP):
                width = max(around(made[number].nodes.values()).right + padding(number < titled) for number in stack)
                low = top
                for number in stack:
                    for node, at in made[number].nodes.items():
                        layout.nodes[node] = Rectangle(at.x + x, at.y + low, at.width, at.height)
                    if number < titled:
                        layout.groups[number] = Rectangle(x, low, width, heights[number])
                    low += heights[number] + GROUP_GAP
                bottom = max(bottom, low)
                x += width + GROUP_GAP
        top = bottom
    return layout
