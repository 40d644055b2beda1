"""Which rounds a loop keeps, and when it makes them again."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch


class Agent:
    """Something that answers; two of the same name are as good as each other."""

    def __init__(self, name: str):
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Agent) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


def graph(steps: int = 30):
    from comfy_execution.graph import DynamicPrompt

    return DynamicPrompt(
        {
            "start": {
                "class_type": "RealISR_AgentRefinementStart",
                "inputs": {"image": ["lq", 0], "prompt": "a house"},
            },
            "sample": {"class_type": "KSampler", "inputs": {"positive": ["start", 0], "steps": steps}},
            "elsewhere": {"class_type": "PreviewAny", "inputs": {"source": ["sample", 0]}},
        }
    )


@pytest.fixture
def same(host):
    """Circumstances from defaults, one of them changed at a time."""
    from realisr.host.agent.history import circumstances

    keep_alive = [Agent("seer")]

    def make(loop: str = "loop", steps: int = 30, agent: Any = keep_alive[0], options: tuple[Any, ...] = ([0], [500])):
        return circumstances(graph(steps), loop, "sample", [agent], options)

    return make


@pytest.fixture
def history(host):
    from realisr.host.agent.history import RefinementHistory

    return RefinementHistory("a house", torch.zeros(1, 2, 2, 3))


def result(value: float):
    from realisr.host.agent.history import RoundResult

    return RoundResult([torch.full((1, 2, 2, 3), value)], [f"prompt {value}"], [""], [""])


FIRST = torch.zeros(1, 2, 2, 3)


def test_a_run_goes_on_where_nothing_has_changed(history, same):
    run = history.continued(same(), [FIRST])
    history.record(run.key, 2, result(2))
    history.record(run.key, 3, result(3))
    loaded_again = Agent("seer")
    assert history.continued(same(agent=loaded_again), [FIRST]) is run
    assert history.recall(run.key, 3).prompts == ["prompt 3"]


@pytest.mark.parametrize("change", [{"steps": 20}, {"options": ([1], [500])}], ids=str)
def test_a_change_starts_a_new_run_in_place_of_the_old(history, same, change: dict[str, Any]):
    old = history.continued(same(), [FIRST])
    history.record(old.key, 2, result(2))
    new = history.continued(same(**change), [FIRST])
    assert new.rounds == []
    assert history == [new]
    with pytest.raises(LookupError, match="round 2"):
        history.recall(old.key, 2)


def test_another_agent_starts_a_new_run(history, same):
    old, other = history.continued(same(), [FIRST]), Agent("oracle")
    assert history.continued(same(agent=other), [FIRST]) is not old


def test_images_are_compared_by_identity(history, same):
    """The host restores anew whenever anything has changed, even if the image comes out the same."""
    run = history.continued(same(), [FIRST])
    assert history.continued(same(), [FIRST.clone()]) is not run


def test_each_loop_has_a_run_of_its_own(history, same):
    one, other = history.continued(same(), [FIRST]), history.continued(same(loop="loop2"), [FIRST])
    history.record(one.key, 2, result(2))
    assert (len(one.rounds), len(other.rounds)) == (1, 0)
    assert history.continued(same(), [FIRST]) is one


def test_a_round_made_again_drops_those_after_it(history, same):
    run = history.continued(same(), [FIRST])
    for number in (2, 3, 4):
        history.record(run.key, number, result(number))
    history.record(run.key, 3, result(30))
    assert [kept.prompts for kept in run.rounds] == [["prompt 2"], ["prompt 30"]]


def test_an_agent_is_not_kept_alive(history, same):
    """It may be a model of several gigabytes that the host wants to free."""
    agent = Agent("heavy")
    alive = weakref.ref(agent)
    run = history.continued(same(agent=agent), [FIRST])
    del agent
    gc.collect()
    assert alive() is None
    assert history.continued(same(agent=Agent("heavy")), [FIRST]) is not run


def test_the_host_counts_the_images_that_are_kept(history, same, monkeypatch):
    """Its cache frees what is large first, and looks for tensors in lists and tuples."""
    import comfy_execution.caching as caching
    from execution import CacheEntry

    run = history.continued(same(), [FIRST])
    history.record(run.key, 2, result(2))
    cache = caching.RAMPressureCache(caching.CacheKeySetID)
    memory = type("Memory", (), {"available": 0})
    monkeypatch.setattr(caching.psutil, "virtual_memory", lambda: memory)
    cache.cache["start"] = CacheEntry({}, [[history]])
    cache.used_generation["start"], cache.timestamps["start"] = -1, 0.0
    freed = cache.ram_release(1)
    images = FIRST.nbytes + run.rounds[0].images[0].nbytes
    assert freed == pytest.approx(caching.RAM_CACHE_DEFAULT_RAM_USAGE + images)


def test_edits_keep_the_rounds_before_the_first_that_differs(history, same):
    run = history.continued(same(), [FIRST])
    for number in (2, 3, 4):
        history.record(run.key, number, result(number))
    edited = history.continued(same(), [FIRST], {4: "mine"})
    assert edited.key != run.key
    assert [kept.prompts for kept in edited.rounds] == [["prompt 2"], ["prompt 3"]]
    assert history.continued(same(), [FIRST], {4: "mine"}) is edited
    history.record(edited.key, 4, result(40))
    assert len(history.continued(same(), [FIRST], {4: "mine", 5: "mine too"}).rounds) == 3
    assert len(history.continued(same(), [FIRST], {3: "other", 4: "mine"}).rounds) == 1
    assert len(history) == 1


def test_a_run_that_was_ended_early_goes_on_under_another_key(history, same):
    run = history.continued(same(), [FIRST])
    history.record(run.key, 2, result(2))
    history.halted = run.key
    again = history.continued(same(), [FIRST])
    assert again.key != run.key
    assert again.rounds == run.rounds
    assert history.continued(same(), [FIRST]) is again


def test_edits_are_read_in_the_order_of_the_rounds(host):
    from realisr.host.agent.edits import read_edits

    assert read_edits(" ", 5, 100) == {}
    assert list(read_edits('{"10": "b", "2": "a", "30": "c"}', 10, 100).items()) == [(2, "a"), (10, "b")]


def test_a_stop_counts_for_the_next_round_of_that_prompt_alone(host):
    from realisr.host.agent.stopping import Stopping
    from realisr.host.agent.timeline import Place

    stopping = Stopping()
    here, inner = Place("p", "7:loop", "7:loop"), Place("p", "loop.round_2.loop2", "loop2")
    assert stopping.goes_on(here, "run", 2)
    stopping.ask("p", "7:loop")
    assert stopping.goes_on(here, "run", 2), "a round that has begun is finished, for each of its images"
    assert stopping.goes_on(inner, "other run", 3)
    assert not stopping.goes_on(here, "run", 3)
    assert (stopping.stops("7:loop"), stopping.stops("loop.round_2.loop2")) == (1, 0)
    assert not stopping.goes_on(here, "run", 3), "nor for its other images"
    assert stopping.goes_on(here, "next run", 2), "used up"
    stopping.ask("p", "7:loop")
    assert stopping.goes_on(Place("later", "7:loop", "7:loop"), "run", 4)
    assert stopping.goes_on(None, "run", 9)
