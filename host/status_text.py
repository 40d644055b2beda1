"""A line of text under a node while it runs."""

from __future__ import annotations

from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context


def show_on_node(text: str) -> None:
    """Show a text under the node that executes now; for a node of an expansion, under the one the artist placed.

    Does nothing outside of a run and without a server.
    """
    from server import PromptServer

    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is None or server is None:
        return
    shown_at = get_progress_state().dynprompt.get_display_node_id(context.node_id)
    server.send_progress_text(text, shown_at, server.client_id)
