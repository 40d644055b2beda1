"""The pack's own socket types, for what the host has no type for. All type names begin with REALISR_."""

from __future__ import annotations

from comfy_api.latest import io

VLMSocket = io.Custom("REALISR_VLM")
"""A services.vlm.protocol.VisionLanguageModel."""

TileGridSocket = io.Custom("REALISR_TILE_GRID")
"""A models.tiles.layout.TileLayout."""

TileCaptionsSocket = io.Custom("REALISR_TILE_CAPTIONS")
"""A services.vlm.patch_prompts.TileCaptions."""

DiptychSocket = io.Custom("REALISR_DIPTYCH")
"""A models.vicr.diptych.Diptych."""

MMControlNetSocket = io.Custom("REALISR_MM_CONTROLNET")
"""A host.dreamsr.control.loader.MMControl."""

ARRestorerSocket = io.Custom("REALISR_AR_RESTORER")
"""A host.pure.model.ARRestorer."""

TokenGridSocket = io.Custom("REALISR_TOKEN_GRID")
"""A host.pure.restore.TokenGrids."""

AgentLoopSocket = io.Custom("REALISR_AGENT_LOOP")
"""A host.agent.history.RefinementHistory. It also says which Start a Loop belongs to."""

AgentRoundsSocket = io.Custom("REALISR_AGENT_ROUNDS")
"""A host.agent.loop.MadeRounds. Handed over inside of a loop only."""

ComparisonSocket = io.Custom("REALISR_COMPARISON")
"""A tuple of models.compare.sheet.Entry."""
