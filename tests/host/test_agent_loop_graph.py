"""Which part of a graph a loop runs again, and the copies of it."""

from __future__ import annotations

from typing import Any

import pytest

Graph = dict[str, dict[str, Any]]


def node(class_type: str = "ImageInvert", **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def dynamic(graph: Graph):
    from comfy_execution.graph import DynamicPrompt

    return DynamicPrompt(graph)


START = node("RealISR_AgentRefinementStart", image=["lq", 0], prompt="a house")


def diamond() -> Graph:
    """lq -> start -> (a, b) -> c, with b also on the image and d beside them."""
    return {
        "lq": node("LoadImage", image="x.png"),
        "start": START,
        "a": node(text=["start", 0], strength=0.5),
        "b": node(on=["a", 0], pixels=["start", 1]),
        "c": node(left=["b", 1], right=["a", 0], mode="x"),
        "d": node(pixels=["start", 1]),
        "e": node(one=["c", 0], two=["d", 0]),
    }


def prompt_of_start(link: tuple[str, int]) -> bool:
    return link == ("start", 0)


def test_between_is_what_depends_on_the_prompt_and_leads_to_the_image(host):
    from realisr.host.graph_expansion import between

    graph = dynamic(diamond())
    assert between(graph, prompt_of_start, ["c"]) == {"a", "b", "c"}
    assert between(graph, prompt_of_start, ["e"]) == {"a", "b", "c", "e"}
    assert between(graph, prompt_of_start, ["d"]) == frozenset()
    assert between(graph, lambda link: link == ("start", 1), ["c"]) == {"b", "c"}
    assert between(graph, prompt_of_start, ["a", "d"]) == {"a"}


def test_between_survives_a_long_chain(host):
    from realisr.host.graph_expansion import between

    graph: Graph = {"start": node(), "0": node(x=["start", 0])}
    graph |= {str(number): node(x=[str(number - 1), 0]) for number in range(1, 3000)}
    assert len(between(dynamic(graph), prompt_of_start, ["2999"])) == 3000


def test_copies_are_joined_and_share_the_rest(host):
    from comfy_execution.graph_utils import GraphBuilder

    from realisr.host.graph_expansion import copy_nodes

    graph = dynamic(diamond())
    builder = GraphBuilder("loop.round_2.")
    replaced = {("start", 0): ["loop.round_2.agent", 0]}
    copies = copy_nodes(builder, graph, {"a", "b", "c"}, replaced)
    assert copies["c"].out(1) == ["loop.round_2.c", 1]
    made = builder.finalize()
    assert made == {
        "loop.round_2.a": {**node(text=["loop.round_2.agent", 0], strength=0.5), "override_display_id": "a"},
        "loop.round_2.b": {**node(on=["loop.round_2.a", 0], pixels=["start", 1]), "override_display_id": "b"},
        "loop.round_2.c": {
            **node(left=["loop.round_2.b", 1], right=["loop.round_2.a", 0], mode="x"),
            "override_display_id": "c",
        },
    }
    assert graph.get_node("a")["inputs"]["text"] == ["start", 0]


def test_a_copy_takes_inputs_of_any_name_and_values_in_place_of_links(host):
    from comfy_execution.graph_utils import GraphBuilder

    from realisr.host.graph_expansion import copy_nodes

    odd = {"id": 3, "self": None, "class_type": "x", "size.width": 4, "round": ["start", 2], "several": ["a", "b"]}
    graph = dynamic({"start": START, "n": {"class_type": "ImageInvert", "inputs": odd}})
    builder = GraphBuilder("l.round_4.")
    copy_nodes(builder, graph, {"n"}, {("start", 2): 4})
    assert builder.finalize()["l.round_4.n"]["inputs"] == odd | {"round": 4}


@pytest.fixture
def wiring(host):
    """Reads a loop's wiring, with the pack's and some core nodes known to the host."""
    import nodes

    from realisr.host.agent.loop import Wiring
    from realisr.nodes import agent_loop

    known = dict(nodes.NODE_CLASS_MAPPINGS)
    nodes.NODE_CLASS_MAPPINGS.update({found.GET_SCHEMA().node_id: found for found in agent_loop.NODES})
    yield lambda graph, loop="loop": Wiring.read(dynamic(graph), loop)
    nodes.NODE_CLASS_MAPPINGS.clear()
    nodes.NODE_CLASS_MAPPINGS.update(known)


def loop(image: list[Any], start: list[Any] | None = None) -> dict[str, Any]:
    return node("RealISR_AgentRefinementLoop", loop=start or ["start", 3], image=image, rounds=3)


def test_outputs_beside_the_body_are_part_of_it_but_not_those_after_the_loop(wiring):
    graph = {
        **diamond(),
        "loop": loop(["c", 0]),
        "scaled": node("ImageScale", image=["a", 0]),
        "beside": node("PreviewImage", images=["scaled", 0]),
        "after": node("SaveImage", images=["loop", 0]),
        "both": node("SaveImage", images=["c", 0], filename_prefix=["loop", 2]),
        "lq_preview": node("PreviewImage", images=["start", 1]),
    }
    read = wiring(graph)
    assert (read.start, read.result) == ("start", ("c", 0))
    assert read.body == {"a", "b", "c", "scaled", "beside"}


def test_a_second_loop_on_the_same_start_is_not_run_in_the_rounds_of_the_first(wiring):
    graph = {
        **diamond(),
        "loop": loop(["c", 0]),
        "other": loop(["b", 0]),
        "after_other": node("SaveImage", images=["other", 0]),
    }
    assert wiring(graph).body == {"a", "b", "c"}
    assert wiring(graph, "other").body == {"a", "b"}


def test_the_round_number_varies_too(wiring):
    graph = {**diamond(), "named": node(image=["d", 0], number=["start", 2]), "loop": loop(["named", 0])}
    assert wiring(graph).body == {"named"}


@pytest.mark.parametrize(
    ("wired", "complaint"),
    [
        (loop(["d", 0]), "does not depend on the prompt"),
        (loop(["start", 1]), "does not depend on the prompt"),
        (loop(["c", 0], ["a", 0]), "directly from an Agent Refinement Start"),
        (node("RealISR_AgentRefinementLoop", image=["c", 0]), "directly from an Agent Refinement Start"),
        (node("RealISR_AgentRefinementLoop", loop=["start", 3]), "connect `image`"),
    ],
)
def test_wrong_wiring_is_told(wiring, wired: dict[str, Any], complaint: str):
    with pytest.raises(ValueError, match=complaint):
        wiring({**diamond(), "loop": wired})
