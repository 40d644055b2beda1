"""Work that is halved until it fits into memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def fitting(limit: Callable[[], int], tried: list[list[int]]) -> Callable[[list[int]], list[int]]:
    """Work for which memory holds `limit()` items together."""
    import comfy.model_management

    def run(part: list[int]) -> list[int]:
        tried.append(part)
        if len(part) > limit():
            raise comfy.model_management.OOM_EXCEPTION("no memory")
        return [-number for number in part]

    return run


def test_a_batch_is_halved_where_memory_is_short(host):
    from realisr.host.memory import within_memory

    tried: list[list[int]] = []
    assert within_memory(fitting(lambda: 2, tried), [1, 2, 3, 4, 5]) == [-1, -2, -3, -4, -5]
    assert tried == [[1, 2, 3, 4, 5], [1, 2], [3, 4], [5]]


def test_what_memory_holds_is_known_the_next_time(host):
    from realisr.host.memory import MostTogether, within_memory

    tried: list[list[int]] = []
    most = MostTogether(4)
    for batch in ([1, 2, 3, 4], [5, 6, 7, 8]):
        within_memory(fitting(lambda: 2, tried), batch, most)
    assert tried == [[1, 2, 3, 4], [1, 2], [3, 4], [5, 6], [7, 8]]


def test_what_the_caller_keeps_makes_room_for_a_last_item(host):
    import comfy.model_management

    from realisr.host.memory import within_memory

    tried: list[list[int]] = []
    kept = ["conditions"]

    def make_room() -> bool:
        had = bool(kept)
        kept.clear()
        return had

    assert within_memory(fitting(lambda: 0 if kept else 1, tried), [1], make_room=make_room) == [-1]
    assert tried == [[1], [1]]
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        within_memory(fitting(lambda: 0, tried), [1], make_room=make_room)
