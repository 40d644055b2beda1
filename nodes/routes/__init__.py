"""What the browser side asks the server beyond ComfyUI's own API, under `/realisr/`.

One module per subject. Each has `ROUTES`: ("GET" or "POST", path after `/realisr/`, handler). A handler takes aiohttp's
request and returns what becomes the JSON answer; a ValueError becomes status 400 with its message as `error`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import ModuleType
from typing import Any

from aiohttp import web

from . import agent_loop, estimate, metrics, models

Handler = Callable[[web.Request], Awaitable[Any]]

MODULES: Sequence[ModuleType] = (agent_loop, estimate, metrics, models)


def add_routes() -> None:
    """Called once when ComfyUI loads the pack. Without a server (a script that loads nodes) there is nothing to add."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    for module in MODULES:
        for method, path, handler in module.ROUTES:
            server.routes.route(method, f"/realisr/{path}")(answered(handler))


def answered(handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
    """The handler as aiohttp wants it."""

    async def answer(request: web.Request) -> web.Response:
        try:
            return web.json_response(await handler(request))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)

    return answer
