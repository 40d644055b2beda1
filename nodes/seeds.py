"""The seed widget's range, as the host's own samplers have it."""

from __future__ import annotations

MAX_SEED = 0xFFFFFFFFFFFFFFFF
