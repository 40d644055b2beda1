"""What a run will take (estimates.py), and what presets set, for the panels under whole-method nodes."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web

from ...models.presets import PRESETS, TABLE
from ..estimates import answer

log = logging.getLogger(__name__)


async def estimate(request: web.Request) -> dict[str, Any]:
    """{"graph": in API form, "node": its id there, "last_size": [width, height] or null} -> estimates.answer."""
    asked = await request.json()
    if not isinstance(asked, dict):
        raise ValueError("expected a JSON object")
    try:
        return await asyncio.to_thread(answer, asked.get("graph"), asked.get("node"), asked.get("last_size"))
    except ValueError:
        raise
    # Files of models fail in ways nobody knows beforehand; the run will say how. An estimate only does not know.
    except Exception:
        log.debug("RealISR: no estimate", exc_info=True)
        return {"level": "unknown", "reason": "", "needs": [], "unused": [], "unknown": "model"}


async def presets(_: web.Request) -> dict[str, Any]:
    return {
        node: {preset: {name: values[index] for name, values in knobs.items()} for index, preset in enumerate(PRESETS)}
        for node, knobs in TABLE.items()
    }


ROUTES = [("POST", "estimate", estimate), ("GET", "presets", presets)]
