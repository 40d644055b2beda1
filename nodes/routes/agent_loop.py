"""Stop after this round: the button on Agent Refinement Loop."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from ...host.agent.loop import LOOP_ID
from ...host.agent.stopping import STOPPING


async def stop(request: web.Request) -> dict[str, Any]:
    """Ends the loop {"node": id} of the running prompt after its current round. Raises ValueError where none runs."""
    from server import PromptServer

    asked = await request.json()
    node = asked.get("node") if isinstance(asked, dict) else None
    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    for _, prompt_id, graph, *_ in running:
        if isinstance(node, str) and graph.get(node, {}).get("class_type") == LOOP_ID:
            STOPPING.ask(prompt_id, node)
            return {"stopping": node}
    raise ValueError("This loop does not run now.")


ROUTES = [("POST", "agent_loop/stop", stop)]
