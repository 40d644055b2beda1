"""Names for what travels on the host's wires, for signatures."""

from __future__ import annotations

from typing import Any, TypeAlias

import comfy.clip_vision
import comfy.model_patcher
import comfy.sd

Model: TypeAlias = comfy.model_patcher.ModelPatcher
"""A MODEL: a diffusion model under the host's management. Its network's adapter, a BaseModel, is `.model`."""

VAE: TypeAlias = comfy.sd.VAE

ClipVision: TypeAlias = comfy.clip_vision.ClipVisionModel
"""A CLIP_VISION."""

Entry: TypeAlias = list[Any]
"""One entry of a CONDITIONING: `[text tokens [b, N, E], options]`."""

Conditioning: TypeAlias = list[Entry]
"""A CONDITIONING: entries that the host samples together."""
