"""The pack's own socket types, for what the host has no type for."""

from __future__ import annotations

from comfy_api.latest import io

VLM = io.Custom("REALISR_VLM")


TileGridType = io.Custom("REALISR_TILE_GRID")


MMControlType = io.Custom("MM_CONTROLNET")


TokenGridType = io.Custom("REALISR_TOKEN_GRID")


LoopType = io.Custom("REALISR_AGENT_LOOP")
"""Says which Start a Loop belongs to, and carries a RefinementHistory."""


DiptychRecord = io.Custom("REALISR_DIPTYCH")


ARRestorerType = io.Custom("REALISR_AR_RESTORER")
