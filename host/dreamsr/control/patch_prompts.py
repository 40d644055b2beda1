"""Patch prompts: the text of each tile, for the control network (arXiv 2605.15682) or for the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from ....models.tiles.grid import TileGrid
from ...tiling.conditions import MODEL_CONDS, TileOptions, with_tile_options
from ...tiling.patch_prompts import prompts_of, text_options
from ...types import Conditioning, Entry
from .conditioning import ControlKeys, LocalPrompt, with_local_prompt

Reader = Literal["auto", "control", "model", "both"]
READERS: tuple[Reader, ...] = get_args(Reader)


def has_mm_control(options: Mapping[str, Any]) -> bool:
    return ControlKeys.of(0).latent in options.get(MODEL_CONDS, {})


def has_control(options: Mapping[str, Any]) -> bool:
    """Whether an entry's options carry a ControlNet, ordinary or MM."""
    return options.get("control") is not None or has_mm_control(options)


def control_options(entry: Entry, prompt: Entry) -> dict[str, Any]:
    """A tile's prompt as the text of every ControlNet of an entry; the entry's own text stays the model's."""
    made: dict[str, Any] = {"cross_attn_controlnet": prompt[0]}
    if has_mm_control(entry[1]):
        before = entry[1][MODEL_CONDS]
        local = LocalPrompt.from_entry(prompt, before[ControlKeys.of(0).pooled].cond.shape[-1])
        after = with_local_prompt(before, local)
        made[MODEL_CONDS] = {key: value for key, value in after.items() if value is not before.get(key)}
    return made


def prompt_options(entry: Entry, prompt: Entry, reader: Reader) -> dict[str, Any]:
    """What one tile says for itself in place of what `entry` says for all."""
    if reader == "auto":
        reader = "control" if has_control(entry[1]) else "model"
    control = control_options(entry, prompt) if reader != "model" else {}
    return control | (text_options(entry, prompt) if reader != "control" else {})


def with_patch_prompts(
    conditioning: Conditioning,
    grid: TileGrid,
    patch_prompts: Sequence[Conditioning],
    reader: Reader = "auto",
    node: str = "Tiled MultiDiffusion",
) -> Conditioning:
    """A conditioning with a text of its own for each tile of `grid`.

    patch_prompts: one conditioning per tile, row by row, or one that combines as many. reader: who reads them. control:
    the ControlNets, ordinary and MM, while the model keeps the global text, as DreamSR does; model: the model, in
    place of the global text; auto: control where there is one, else model.

    Raises ValueError, naming `node`, when the numbers differ, when `conditioning` combines several prompts, or when
    control is asked for and there is none.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"{node}: the positive conditioning combines {len(conditioning)} prompts, which patch prompts would all "
            "replace. Connect a single one."
        )
    (entry,) = conditioning
    if reader in ("control", "both") and not has_control(entry[1]):
        raise ValueError(
            f"{node}: patch prompts are for the ControlNet, but the conditioning carries none. Connect Apply "
            "MM-ControlNet or Apply ControlNet before, or let the model read them."
        )
    prompts = prompts_of(patch_prompts, len(grid), node)
    own = [prompt_options(entry, prompt, reader) for prompt in prompts]
    return [[entry[0], with_tile_options(entry[1], TileOptions(grid, own))]]
