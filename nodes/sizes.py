"""The resize widget shared by nodes that enlarge an image: a factor, or a size in pixels."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

MAX_SIDE = 16384
BY_FACTOR = "scale factor"
TO_SIZE = "target size"


def resize_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "resize",
        tooltip="How large the result is: a multiple of the input, or a size in pixels.",
        options=[
            io.DynamicCombo.Option(
                BY_FACTOR,
                [
                    io.Float.Input(
                        "scale",
                        default=4.0,
                        min=1.0,
                        max=8.0,
                        step=0.25,
                        round=0.001,
                        tooltip="Enlargement of both sides. 1 restores at the input's own size.",
                    )
                ],
            ),
            io.DynamicCombo.Option(
                TO_SIZE,
                [
                    io.Int.Input(
                        "width",
                        default=2048,
                        min=0,
                        max=MAX_SIDE,
                        tooltip="Width of the result in pixels; 0 to follow the height at the input's aspect ratio.",
                    ),
                    io.Int.Input(
                        "height",
                        default=0,
                        min=0,
                        max=MAX_SIDE,
                        tooltip="Height of the result in pixels; 0 to follow the width at the input's aspect ratio.",
                    ),
                ],
            ),
        ],
    )


def target_size(image, resize: dict[str, Any]) -> tuple[int, int]:
    """(width, height) in pixels that the widget asks for. Raises ValueError for one that cannot be made."""
    height, width = image.shape[1:3]
    if resize["resize"] == BY_FACTOR:
        target = round(width * resize["scale"]), round(height * resize["scale"])
    else:
        asked_width, asked_height = resize["width"], resize["height"]
        if not (asked_width or asked_height):
            raise ValueError("Give a target width, a height, or both: they are both 0.")
        target = (
            asked_width or round(width * asked_height / height),
            asked_height or round(height * asked_width / width),
        )
    if max(target) > MAX_SIDE:
        raise ValueError(
            f"The result would be {target[0]}x{target[1]} pixels; the longest side allowed is {MAX_SIDE}. "
            f"The input is {width}x{height}: lower the scale."
        )
    return max(1, target[0]), max(1, target[1])
