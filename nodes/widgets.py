"""Widgets and input handling that nodes of several methods share; the resize widget is in `sizes`."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..models.tiling import WEIGHTS, Weights

MAX_SEED = 0xFFFFFFFFFFFFFFFF
"""The seed widget's range, as the host's own samplers have it."""


def vae_tile_input() -> io.Int.Input:
    return io.Int.Input(
        "vae_tile_size",
        default=0,
        min=0,
        max=4096,
        step=64,
        advanced=True,
        tooltip=(
            "Side in pixels of the tiles the VAE works in. 0: the whole image at once when ComfyUI's estimate fits "
            "the free memory, else tiles of 512."
        ),
    )


def tile_weights_input(default: Weights) -> io.Combo.Input:
    return io.Combo.Input(
        "weights",
        options=list(WEIGHTS),
        default=default,
        tooltip=(
            "How overlapping predictions are averaged. uniform: the plain mean of MultiDiffusion. gaussian and "
            "linear trust the middle of a tile more than its border."
        ),
    )


def tiles_per_batch_input(advanced: bool = False) -> io.Int.Input:
    return io.Int.Input(
        "tiles_per_batch",
        default=0,
        min=0,
        max=64,
        advanced=advanced or None,
        tooltip=(
            "Tiles the model runs on together. 0: as many as free memory holds, up to an image of 1024x1024 in "
            "all. Memory depends on this and the tile size, not on the image. Too many for the memory are halved."
        ),
    )


def only(node: str, name: str, values: list[Any] | None, several: str = "patch_prompts") -> Any:
    """The value of an input that takes one, of a node that is handed lists; None where there is none.

    several: the node's input that does take a list. Raises ValueError for a list of several values.
    """
    if not values:
        return None
    if len(values) > 1:
        raise ValueError(
            f"{node}: {name} got a list of {len(values)}. Only {several} takes a list; images of equal size go "
            "together as one batch (Rebatch Images)."
        )
    return values[0]
