"""Copies of MODELs that the host finds its way back from."""

from __future__ import annotations

from .types import Model


def copy_of(model: Model) -> Model:
    """`model.clone()`, whose parent is the model that the loader made, not the copy it is made from.

    The host keeps what is loaded under the copy that asked last, and when that goes, under its parent. Where a node
    makes a copy of a copy and fails in the middle of a run, the error holds both, and both go at once when garbage is
    collected: the host then knows of a loaded model that it can neither use nor unload, and collects garbage before
    every load from then on.
    """
    clone = model.clone()
    clone.parent = first_of(model)
    for kept in clone.additional_models.values():
        for each in kept:
            each.parent = first_of(each)
    return clone


def first_of(model: Model) -> Model:
    """The model at the beginning of a line of copies."""
    while model.parent is not None:
        model = model.parent
    return model
