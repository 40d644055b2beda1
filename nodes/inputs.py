"""Inputs that nodes of several methods share, and what their values mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy_api.latest import io

from ..host.images import checked_image
from ..host.tile_repair import TileRepair
from ..models.tiles.grid import WRAPS, Wrap
from ..models.tiles.weights import WEIGHTS, Weights
from .sockets import VLMSocket

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


def read_choice(combo: io.DynamicCombo.Input, given: Any) -> dict[str, Any]:
    """What a dynamic input was given, once it is known to hold an option of `combo` and all of that option's inputs.

    The host checks ranges, and neither that the option is there nor that a number is one. Raises ValueError naming the
    input, as the API knows it, and what it takes.
    """
    name, keys = combo.id, [option.key for option in combo.options]
    takes = f"It takes {' or '.join(repr(key) for key in keys)}."
    if not isinstance(given, Mapping) or name not in given:
        raise ValueError(f"The input {name} is missing. {takes}")
    option = next((option for option in combo.options if option.key == given[name]), None)
    if option is None:
        raise ValueError(f"The input {name} is {given[name]!r:.60}. {takes}")
    for inner in option.inputs:
        wanted = WIDGETS.get(type(inner))
        if wanted is None:
            continue
        place, (kinds, described) = f"{name}.{inner.id}", wanted
        if inner.id not in given:
            raise ValueError(f"The input {place} is missing; {name} '{option.key}' takes {described}.")
        value = given[inner.id]
        if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"The input {place} is {value!r:.60}. It takes {described}.")
    return dict(given)


WIDGETS: dict[type, tuple[tuple[type, ...], str]] = {
    io.Int.Input: ((int,), "a whole number"),
    io.Float.Input: ((int, float), "a number"),
    io.Boolean.Input: ((bool,), "true or false"),
    io.String.Input: ((str,), "a text"),
}
"""Kind of a widget -> the types of its values, and in words."""


def target_size(image: torch.Tensor, resize: dict[str, Any]) -> tuple[int, int]:
    """(width, height) in pixels that the widget asks for of images `[B, H, W, C]`.

    Raises ValueError for a size that cannot be made, and for a widget without one.
    """
    return size_asked(image.shape[2], image.shape[1], resize)


def size_asked(width: int, height: int, resize: dict[str, Any]) -> tuple[int, int]:
    """(width, height) that the widget asks for of a picture of that size. Raises as target_size."""
    resize = read_choice(resize_input(), resize)
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


def size_shown(image: torch.Tensor) -> dict[str, list[list[int]]]:
    """The `ui` output by which the estimate under a node knows the (width, height) of its last input."""
    return {"realisr_input_size": [[image.shape[2], image.shape[1]]]}


MAX_SEED = 0xFFFFFFFFFFFFFFFF
"""The seed widget's range, as the host's own samplers have it."""


def vae_tile_input() -> io.Int.Input:
    return io.Int.Input(
        "vae_tile_size",
        default=0,
        min=0,
        max=4096,
        step=64,
        advanced=True,
        tooltip=(
            "Side in pixels of the tiles the VAE works in. 0: the whole image at once when ComfyUI's estimate fits "
            "the free memory, else tiles of 512."
        ),
    )


def tile_weights_input(default: Weights) -> io.Combo.Input:
    return io.Combo.Input(
        "weights",
        options=list(WEIGHTS),
        default=default,
        tooltip=(
            "How overlapping predictions are averaged. uniform: the plain mean of MultiDiffusion. gaussian and "
            "linear trust the middle of a tile more than its border. narrow gaussian: far more, as VOSR does."
        ),
    )


def tiles_per_batch_input(advanced: bool = False) -> io.Int.Input:
    return io.Int.Input(
        "tiles_per_batch",
        default=0,
        min=0,
        max=64,
        advanced=advanced or None,
        tooltip=(
            "Tiles the model runs on together. 0: as many as free memory holds, up to an image of 1024x1024 in "
            "all. Memory depends on this and the tile size, not on the image. Too many for the memory are halved."
        ),
    )


def drift_limit_input() -> io.Float.Input:
    return io.Float.Input(
        "drift_limit",
        default=0.0,
        min=0.0,
        max=10.0,
        step=0.05,
        round=0.001,
        optional=True,
        advanced=True,
        tooltip=(
            "Pass over candidates that no longer show what the low-quality image shows, in its low frequencies or its "
            "edges: those whose drift is above this. Ours, from no paper; try 1.2 (see the help page). 0: off."
        ),
    )


def mask_input() -> io.Mask.Input:
    """Transparency of the image to restore; comes after all that older workflows know."""
    return io.Mask.Input(
        "mask",
        optional=True,
        tooltip=(
            "Load Image's mask, to keep the transparency of a PNG: it is enlarged by itself and becomes the result's "
            "alpha. Unconnected, or for a photo without transparency: no alpha."
        ),
    )


TILE_CHECK_OFF, RERUN_SEED, RERUN_LESS = "off", "rerun with another seed", "rerun with less creativity"
TILE_CHECKS = [TILE_CHECK_OFF, RERUN_SEED, RERUN_LESS]


def tile_check_inputs(less: str) -> list[io.Input]:
    """What a whole-method node asks about bad tiles; last among its inputs. less: what less creativity is there."""
    return [
        io.Combo.Input(
            "tile_check",
            options=TILE_CHECKS,
            default=TILE_CHECK_OFF,
            optional=True,
            tooltip=(
                "Compare each tile of the result with the input (as Check Tiles does) and restore bad ones again: with "
                f"another seed, or also with less creativity ({less}). All else stays as it is, to the bit. off: no "
                "check."
            ),
        ),
        io.Int.Input(
            "check_rounds",
            default=2,
            min=1,
            max=10,
            optional=True,
            advanced=True,
            tooltip="How often tiles that are still bad are restored again, at most.",
        ),
    ]


def preview_input() -> io.Boolean.Input:
    """Whether a node that samples in tiles shows them while it runs; last among its inputs."""
    return io.Boolean.Input(
        "preview",
        default=True,
        optional=True,
        advanced=True,
        tooltip=(
            "While it runs, show the picture with finished tiles in it, the current one outlined and the time left. "
            "Takes at most an eighth of the time and does not change the result."
        ),
    )


def wrap_input() -> io.Combo.Input:
    """Over which edges a picture goes on at its other side; last among a node's inputs."""
    return io.Combo.Input(
        "wrap",
        options=list(WRAPS),
        default="none",
        optional=True,
        advanced=True,
        tooltip=(
            "For pictures whose edges meet: left-right for 360° panoramas, both for textures that repeat. Tiles then "
            "lie over the edge too, so that no line shows where the ends meet. none: an ordinary picture."
        ),
    )


def checked_wrap(wrap: str | None) -> Wrap:
    """What the widget asks for, none where it is missing. Raises ValueError for no option."""
    if wrap is None:
        return "none"
    if wrap not in WRAPS:
        raise ValueError(f"The input wrap is {wrap!r:.60}. It takes {' or '.join(map(repr, WRAPS))}.")
    return wrap


def chosen_repair(tile_check: str, rounds: int) -> TileRepair | None:
    """What the widgets ask for; None for no check. Raises ValueError for no option."""
    if tile_check not in TILE_CHECKS:
        raise ValueError(f"The input tile_check is {tile_check!r:.60}. It takes {' or '.join(map(repr, TILE_CHECKS))}.")
    return None if tile_check == TILE_CHECK_OFF else TileRepair(rounds, less_creative=tile_check == RERUN_LESS)


def error_of(check: Callable[[], object]) -> str | None:
    """What is wrong with values or files, as `check` of them raises it in a ValueError or FileNotFoundError; None for
    nothing."""
    try:
        check()
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def checked_choice(value: str | None, check: Callable[[str], object]) -> bool | str:
    """What `validate_inputs` of a loader answers about the file or folder that is chosen: True, or what to fetch.

    An input that is named in `validate_inputs` is not looked up in its list by the host, which would say no more than
    that it is not there. value: None where it comes over a wire, and is checked when the node runs.
    """
    return True if value is None else error_of(lambda: check(value)) or True


def per_input(**answers: bool | str) -> bool | str:
    """One answer of `validate_inputs` from an answer for each input: True, or a line "name: what is wrong" for each bad
    one.

    The host repeats the answer for every input that `validate_inputs` takes; the names say whose fault it is, and our
    browser code leaves each input its own (js/error_card.js).
    """
    wrong = [f"{name}: {answer}" for name, answer in answers.items() if answer is not True]
    return "\n".join(wrong) or True


def only(node: str, name: str, values: list[Any] | None, several: str = "patch_prompts") -> Any:
    """The value of an input that takes one, of a node that is handed lists; None where there is none.

    several: the node's input that does take a list. Raises ValueError for a list of several values.
    """
    if not values:
        return None
    if len(values) > 1:
        raise ValueError(
            f"{node}: {name} got a list of {len(values)}. Only {several} takes a list; images of equal size go "
            "together as one batch (Rebatch Images)."
        )
    return values[0]


MAX_VLM_SEED = 2**32 - 1
"""Endpoints and samplers take seeds of different widths; all take this one."""


def vlm_input(tooltip: str) -> io.MultiType.Input:
    """The socket that takes any of the three."""
    return io.MultiType.Input("vlm", [VLMSocket, io.Clip], tooltip=tooltip)


def one_image(node: str, name: str, image: torch.Tensor) -> torch.Tensor:
    """The only image `[H, W, C]` of a batch. Raises ValueError for several: each needs a prompt of its own."""
    image = checked_image(image, f"{node} ({name}): ")
    if image.shape[0] != 1:
        raise ValueError(
            f"{node}: {name} is a batch of {image.shape[0]} images, and each image needs a prompt of its own. Put "
            "Rebatch Images (batch size 1) before it: the node then runs once per image and gives a list of prompts. "
            "Or choose one image with Get Image from Batch."
        )
    return image[0]


MAX_LENGTH = 1500


def length_input() -> io.Int.Input:
    return io.Int.Input(
        "max_length",
        default=MAX_LENGTH,
        min=50,
        max=20000,
        advanced=True,
        tooltip="Longest prompt in characters. The model is told; a longer answer is asked for again and never cut. "
        "FLUX reads about 512 tokens, some 2000 characters.",
    )


def instruction_input() -> io.String.Input:
    return io.String.Input(
        "instruction",
        default="",
        multiline=True,
        optional=True,
        advanced=True,
        tooltip="What the model is told to do, instead of the pack's instruction (shown on the help page). "
        "The word max_length in braces becomes the limit. Empty: the pack's.",
    )


def seed_input(name: str = "seed") -> io.Int.Input:
    return io.Int.Input(
        name,
        default=0,
        min=0,
        max=MAX_VLM_SEED,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip="Passed to the model where it takes one. Another seed asks again; the same one gives the answer that "
        "ComfyUI has kept.",
    )
