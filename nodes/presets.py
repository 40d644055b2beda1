"""The widget that chooses a preset; what one sets is in models/presets.py."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.presets import CUSTOM, PRESETS, TABLE


def preset_input(node_id: str) -> io.Combo.Input:
    """The choice; comes after all that older workflows know, and leaves them as they were."""
    sets = "; ".join(
        f"{preset}: {', '.join(f'{name} {values[index]:g}' for name, values in TABLE[node_id].items())}"
        for index, preset in enumerate(PRESETS)
    )
    return io.Combo.Input(
        "preset",
        options=[CUSTOM, *PRESETS],
        default=CUSTOM,
        optional=True,
        tooltip=(
            "How close the result stays to the input. faithful: closest. balanced: the authors' everyday values. "
            f"creative: invents most. custom: the widgets as they are. Takes the place of those it sets ({sets})."
        ),
    )
