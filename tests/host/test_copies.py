"""What the host knows of loaded models after a run that failed in the middle: the copies go all at once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness import checkpoints
from harness.vicr import load_fill


@pytest.fixture
def model(host) -> Any:
    sizes = {"double_blocks": 1, "single_blocks": 0, "context_width": 32, "pooled_width": 32}
    return load_fill(host, "copied", checkpoints.flux(1, **sizes))


def dead_after_failure(model: Any, copied: Callable[[Any], Any]) -> int:
    """Load a copy of a copy with what goes with it, and let both go in a ring, as an error's frames hold them."""
    import comfy.model_management as management
    from comfy.model_patcher import ModelPatcher

    cpu = torch.device("cpu")
    beside = ModelPatcher(torch.nn.Linear(2, 2), cpu, cpu)
    first = copied(model)
    first.set_additional_models("beside", [beside])
    second = copied(copied(first))
    management.load_models_gpu([second, *second.get_additional_models()])
    ring: list[Any] = [first, second]
    ring.append(ring)
    del first, second, ring
    gc.collect()
    dead = [loaded for loaded in management.current_loaded_models if loaded.is_dead()]
    for loaded in dead:
        management.current_loaded_models.remove(loaded)
    assert beside.model is not None
    return len(dead)


def test_the_host_finds_its_way_back(host, model):
    from realisr.host.copies import copy_of

    assert dead_after_failure(model, copy_of) == 0


def test_it_does_not_by_itself(host, model):
    """Else there would be nothing to do."""
    assert dead_after_failure(model, lambda model: model.clone()) > 0


def test_a_copy_is_a_clone(host, model):
    from realisr.host.copies import copy_of

    copy = copy_of(copy_of(model))
    assert copy.parent is model
    assert copy.is_clone(model)
    assert copy is not model
