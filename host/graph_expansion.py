"""Running part of an artist's graph again: which nodes that part is, and copies of them for a node's expansion.

ComfyUI's node expansion takes a dictionary of further nodes and runs them like any others, so that their results are
cached, their progress is shown and they can be cancelled. Ids of copies come from the ids of the originals: what is
cached under them is found again in the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from comfy_execution.graph import DynamicPrompt
from comfy_execution.graph_utils import GraphBuilder, is_link
from comfy_execution.utils import get_executing_context

Link = tuple[str, int]
"""An output of a node: the node's id and the output's number."""


def as_link(value: Any) -> Link | None:
    """What an input of a graph in API form is connected to; None for a widget's value."""
    return (value[0], int(value[1])) if is_link(value) else None


def input_link(graph: DynamicPrompt, node_id: str, name: str) -> Link | None:
    """What one input of a node is connected to; None where it is not connected or not there."""
    return as_link(graph.get_node(node_id)["inputs"].get(name))


def upstream(graph: DynamicPrompt, nodes: Iterable[str]) -> dict[str, set[Link]]:
    """These nodes and all they depend on, through optional and lazy inputs too: node id -> what its inputs take."""
    links: dict[str, set[Link]] = {}
    waiting = list(nodes)
    while waiting:
        node_id = waiting.pop()
        if node_id in links or not graph.has_node(node_id):
            continue
        inputs = graph.get_node(node_id)["inputs"].values()
        links[node_id] = {link for value in inputs if (link := as_link(value))}
        waiting += [source for source, _ in links[node_id]]
    return links


def between(graph: DynamicPrompt, begins: Callable[[Link], bool], ends: Iterable[str]) -> frozenset[str]:
    """The nodes on any path from a link for which `begins` holds to one of the nodes in `ends`, ends included.

    An end that depends on no such link is not in it; so the result is empty where nothing is connected that way.
    """
    links = upstream(graph, ends)
    users: dict[str, set[str]] = {}
    for node_id, sources in links.items():
        for source, _ in sources:
            users.setdefault(source, set()).add(node_id)
    waiting = [node_id for node_id, sources in links.items() if any(map(begins, sources))]
    reached: set[str] = set()
    while waiting:
        node_id = waiting.pop()
        if node_id not in reached:
            reached.add(node_id)
            waiting += users.get(node_id, ())
    return frozenset(reached)


def siblings(graph: DynamicPrompt, node_id: str) -> list[str]:
    """The nodes that are there together with this one: the artist's graph, or one expansion."""
    parent = graph.get_parent_node_id(node_id)
    return sorted(other for other in graph.all_node_ids() if graph.get_parent_node_id(other) == parent)


def output_nodes(graph: DynamicPrompt, node_ids: Iterable[str]) -> list[str]:
    """Those that end a graph, such as Preview Image and Save Image, and that this run was asked to execute."""
    from nodes import NODE_CLASS_MAPPINGS

    asked_for = requested_outputs()
    found = []
    for node_id in node_ids:
        node_class = NODE_CLASS_MAPPINGS[graph.get_node(node_id)["class_type"]]
        requested = asked_for is None or node_id in asked_for or graph.get_parent_node_id(node_id) is not None
        if requested and getattr(node_class, "OUTPUT_NODE", False) is True:
            found.append(node_id)
    return found


def requested_outputs() -> frozenset[str] | None:
    """The output nodes that the running prompt executes; None where that cannot be known (no server).

    Fewer than the graph has when the artist queued only some of them or when others did not pass validation.
    """
    item = running_item()
    return None if item is None else frozenset(item[4])


def running_item() -> tuple[Any, ...] | None:
    """The queue's item of the prompt that executes this: (number, id, graph, extra data, output nodes, ...)."""
    from server import PromptServer

    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is None or server is None:
        return None
    running, _ = server.prompt_queue.get_current_queue_volatile()
    return next((item for item in running if item[1] == context.prompt_id), None)


def copy_nodes(
    builder: GraphBuilder,
    graph: DynamicPrompt,
    nodes: Iterable[str],
    replaced: Mapping[Link, Any],
    shown_on_originals: bool = True,
) -> dict[str, Any]:
    """Put copies of nodes into a builder; returns original id -> the copy.

    Links among the nodes join the copies, links in `replaced` become the given link or value, and all others keep
    their original source, which is shared. Progress and previews of a copy are shown on its original, or, where that
    is on no canvas, on the node that expands.
    """
    copied = frozenset(nodes)

    def relinked(value: Any) -> Any:
        link = as_link(value)
        if link is None:
            return value
        if link in replaced:
            return replaced[link]
        return [builder.prefix + link[0], link[1]] if link[0] in copied else value

    copies = {}
    for node_id in sorted(copied):
        node = graph.get_node(node_id)
        copy = builder.node(node["class_type"], id=node_id)
        copy.inputs.update({name: relinked(value) for name, value in node["inputs"].items()})
        if shown_on_originals:
            copy.set_override_display_id(node_id)
        copies[node_id] = copy
    return copies
