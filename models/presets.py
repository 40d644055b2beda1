"""Faithful, balanced, creative: what one choice means over all methods.

Faithful stays closest to the low-quality image, creative invents most, balanced is what the authors use every day.
The table below is all that a preset does. What was measured of it:
https://github.com/realisr/RealISR/blob/main/benchmarks/RESULTS.md#presets

VICR has no whole-method node and so no preset. What comes nearest there is the caption its agent starts from: tags
(faithful) or sentences, in Caption for Restoration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CUSTOM = "custom"
PRESETS = ("faithful", "balanced", "creative")

VOSR, DREAMSR, PURE = "RealISR_RestorationCFGSampler", "RealISR_DreamSRRestore", "RealISR_ARTokenRestorer"

TABLE: dict[str, dict[str, tuple[float, float, float]]] = {
    # The authors' most faithful, everyday and most generative scale.
    VOSR: {"restoration_scale": (2.0, 0.5, -0.5)},
    # The paper's 0.8, less and more noise to start from; ours but for the middle.
    DREAMSR: {"texture_start": (0.5, 0.8, 0.95)},
    # The authors' 0.9, a third less and a little more; ours but for the middle.
    PURE: {"temperature": (0.6, 0.9, 1.1)},
}
"""Node id -> widget -> its value in each of PRESETS."""


def applied(node_id: str, preset: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a node's widgets `given` with those that the preset sets in their place.

    preset: None counts as custom. Raises ValueError for no preset.
    """
    if preset is None or preset == CUSTOM:
        return dict(given)
    if preset not in PRESETS:
        raise ValueError(f"The input preset is {preset!r:.60}. It takes {' or '.join(map(repr, (CUSTOM, *PRESETS)))}.")
    index = PRESETS.index(preset)
    return dict(given) | {name: values[index] for name, values in TABLE[node_id].items()}
