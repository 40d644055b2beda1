"""A prompt for each tile: which conditioning belongs to which, and what of the whole canvas's it replaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.utils
import torch

from ..types import Conditioning, Entry
from .conditions import tile_options

NOT_PER_TILE = ("area", "mask", "control", "gligen", "hooks", "start_percent", "end_percent")
"""Options of a tile's prompt that would speak of the canvas or of the schedule."""


def prompts_of(tile_prompts: Sequence[Conditioning], tiles: int, node: str) -> list[Entry]:
    """One entry per tile, from a list with one conditioning per tile or from one conditioning with as many entries.

    node: name of the node that tiles, for messages, in which tiles count from 1.
    Raises ValueError when the numbers differ, and for prompts that carry areas, masks, ControlNets or hooks.
    """
    if len(tile_prompts) == 1:
        entries = list(tile_prompts[0])
    else:
        combined = [number for number, conditioning in enumerate(tile_prompts, 1) if len(conditioning) != 1]
        if combined:
            raise ValueError(
                f"{node}: the prompts of tiles {combined[:5]} are not one prompt each (combined conditionings). Give "
                "one per tile."
            )
        entries = [conditioning[0] for conditioning in tile_prompts]
    if len(entries) != tiles:
        raise ValueError(
            f"{node}: got {len(entries)} tile prompts for {tiles} tiles. Give one prompt per tile, row by row, or none."
        )
    for number, (_, options) in enumerate(entries, 1):
        found = [key for key in NOT_PER_TILE if options.get(key) is not None]
        found += ["tiles of its own"] * (tile_options(options) is not None)
        if found:
            raise ValueError(
                f"{node}: the prompt of tile {number} carries {', '.join(found)}, which a tile's prompt cannot. Put it "
                "on the positive conditioning, or leave it out."
            )
    return entries


def text_options(entry: Entry, tile_entry: Entry) -> dict[str, Any]:
    """What a tile's prompt replaces in an entry: the text, and all else the prompt's conditioning says.

    Columns that the entry's pooled output has beyond the prompt's (the bridge's vector) are the whole image's and
    stay.
    """
    tokens, options = tile_entry
    made = {"attention_mask": None, **options, "cross_attn": tokens}
    pooled, whole = options.get("pooled_output"), entry[1].get("pooled_output")
    if pooled is None:
        made["pooled_output"] = whole
    elif whole is not None and whole.shape[-1] > pooled.shape[-1]:
        rest = comfy.utils.repeat_to_batch_size(whole[:, pooled.shape[-1] :].to(pooled), len(pooled))
        made["pooled_output"] = torch.cat([pooled, rest], dim=-1)
    return made
