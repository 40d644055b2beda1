"""What the browser hears of a refinement loop while it runs: a row for each round as it finishes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..graph_expansion import running_item
from ..preview_files import save_preview

MESSAGE = "realisr.timeline"

PICTURE = 320
"""Longer side of a row's picture in pixels."""

State = Literal["running", "done", "stopped"]

Row = dict[str, Any]
"""round, image (1 for the first) of images, prompt, changes, reason, edited, drift and seconds (None: not known), and
picture: {filename, subfolder, type} for /view, or None."""


@dataclass(frozen=True)
class Place:
    """Where a loop is."""

    prompt_id: str
    loop: str
    """Id of the loop node that runs, one of an expansion where a loop is in another one's rounds."""
    node: str
    """Id of the node that the artist placed."""

    @classmethod
    def here(cls) -> Place | None:
        """Of the loop that executes now, or that made the node that does; None outside of a server's run."""
        context = get_executing_context()
        if context is None or running_item() is None:
            return None
        graph = get_progress_state().dynprompt
        parent = graph.get_parent_node_id(context.node_id)
        made = context.node_id.rpartition(".")[0] == parent
        return cls(context.prompt_id, parent if made else context.node_id, graph.get_display_node_id(context.node_id))


def tell(state: State, total: int, rows: Sequence[Row] = (), fresh: bool = False) -> None:
    """Send rows to the loop node that the artist placed. fresh: in place of all that it shows, else beside them.

    Does nothing outside of a run and where no browser waits for this one.
    """
    from server import PromptServer

    place, item = Place.here(), running_item()
    server = getattr(PromptServer, "instance", None)
    if place is None or item is None or server is None or server.client_id is None:
        return
    workflow = (item[3].get("extra_pnginfo") or {}).get("workflow") or {}
    detail = {
        "prompt_id": place.prompt_id,
        "node": place.node,
        "workflow": workflow.get("id"),
        "state": state,
        "total": total,
        "rows": list(rows),
        "fresh": fresh,
    }
    server.send_sync(MESSAGE, detail, server.client_id)


def rows_of(
    number: int,
    images: Sequence[Tensor],
    prompts: Sequence[str],
    changes: Sequence[str] = (),
    reasons: Sequence[str] = (),
    *,
    edited: bool = False,
    drifts: Sequence[float] = (),
    seconds: float | None = None,
) -> list[Row]:
    """The rows of one round, one per restored image `[1, H, W, C]`. Saves their pictures among the temporary files."""
    return [
        {
            "round": number,
            "image": index + 1,
            "images": len(images),
            "prompt": prompts[index],
            "changes": changes[index] if changes else "",
            "reason": reasons[index] if reasons else "",
            "edited": edited,
            "drift": round(drifts[index], 3) if drifts and math.isfinite(drifts[index]) else None,
            "seconds": None if seconds is None else round(seconds, 1),
            "picture": save_preview(image[0], PICTURE),
        }
        for index, image in enumerate(images)
    ]
