"""Pictures that are none: every node that takes an IMAGE says what it was given and what to do."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.schemas import given_to, pack_nodes

GREY = torch.full((1, 16, 16, 3), 0.5)


def one_value(value: float, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    image = torch.full((1, 16, 16, channels), 0.5, dtype=dtype)
    image[0, 3, 5, channels - 1] = value
    return image


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: None, "Expected images, got a NoneType"),
    "list": (lambda: [GREY], "Expected images, got a list"),
    "one image without a batch": (lambda: GREY[0], r"Expected images .* got \[16, 16, 3\]"),
    "video": (lambda: GREY[None], r"Expected images .* got \[1, 1, 16, 16, 3\]"),
    "one channel": (lambda: GREY[..., :1], "Expected images"),
    "two channels": (lambda: GREY[..., :2], "Expected images"),
    "five channels": (lambda: torch.cat([GREY, GREY], -1)[..., :5], "Expected images"),
    "empty batch": (lambda: GREY[:0], "Expected images"),
    "no rows": (lambda: GREY[:, :0], "Expected images"),
    "bytes": (lambda: (GREY * 255).byte(), "holds uint8 values"),
    "long": (lambda: GREY.long(), "holds int64 values"),
    "bool": (lambda: GREY.bool(), "holds bool values"),
    "complex": (lambda: GREY.to(torch.cfloat), "holds complex64 values"),
    "nan": (lambda: one_value(float("nan")), "holds 1 values that are not numbers"),
    "inf": (lambda: one_value(float("inf")), "holds 1 values that are not numbers"),
    "half nan": (lambda: one_value(float("nan"), dtype=torch.float16), "holds 1 values that are not numbers"),
    "huge": (lambda: one_value(1e38), r"values go from 0\.5 to 1e\+38"),
    "huge double": (lambda: one_value(-1e300, dtype=torch.float64), r"values go from -1e\+300 to 0\.5"),
    "levels": (lambda: one_value(255.0), r"values go from 0\.5 to 255"),
    "signed": (lambda: one_value(-1.0), r"values go from -1 to 0\.5"),
    "alpha above": (lambda: one_value(2.0, 4), r"values go from 0\.5 to 2"),
    "alpha below": (lambda: one_value(-1.0, 4), r"values go from -1 to 0\.5"),
    "alpha nan": (lambda: one_value(float("nan"), 4), "not numbers"),
}

ACCEPTED: dict[str, Callable[[], Tensor]] = {
    "half": lambda: GREY.half(),
    "bfloat16": lambda: GREY.bfloat16(),
    "double": lambda: GREY.double(),
    "fp8": lambda: GREY.to(torch.float8_e4m3fn),
    "overshoot": lambda: one_value(1.2) + one_value(-0.5) - 0.5,
    "alpha": lambda: one_value(0.0, 4),
    "turned": lambda: torch.rand(1, 3, 16, 16).movedim(1, -1),
}

INSIDE_THE_LOOP = {"RealISR_AgentRefinementRound", "RealISR_AgentRefinementCandidates"}
"""What Agent Refinement Loop makes by itself, of images that its other nodes have looked at."""


LOOKS_FOR_NAN = "RealISR_CheckTiles.image"
"""The one input that takes values that are not numbers, to say where they are."""


def image_inputs() -> dict[str, tuple[Any, str]]:
    """ "Node id.input" -> the class and the input's name, for every IMAGE that the pack's nodes take."""
    from comfy_api.latest import io

    return {
        f"{schema.node_id}.{given.id}": (node, given.id)
        for node in pack_nodes()
        for schema in [node.define_schema()]
        if schema.node_id not in INSIDE_THE_LOOP
        for given in schema.inputs
        if isinstance(given, io.Image.Input)
    }


def complaints(kind: str) -> list[str]:
    """Nodes that do not refuse the picture with its sentence."""
    make, said = REFUSED[kind]
    wrong = []
    for place, (node, name) in image_inputs().items():
        if kind == "none" and name in {given.id for given in node.define_schema().inputs if given.optional}:
            continue
        if place == LOOKS_FOR_NAN and "not numbers" in said:
            continue
        try:
            with torch.inference_mode():
                result = node.execute(**given_to(node, name, make()))
                if inspect.iscoroutine(result):
                    # In a thread of its own: an open browser page has an event loop in this one.
                    with ThreadPoolExecutor(1) as thread:
                        thread.submit(asyncio.run, result).result()
            wrong.append(f"{place} took it")
        # Whatever it is, that it came is what the test is about.
        except Exception as error:
            if not (isinstance(error, ValueError) and re.search(said, str(error))):
                wrong.append(f"{place}: {type(error).__name__}: {error}")
    return wrong


@pytest.mark.parametrize("kind", REFUSED)
def test_every_node_that_takes_an_image_refuses_what_is_none(host, kind):
    assert len(image_inputs()) >= 22
    assert "\n".join(complaints(kind)) == ""


@pytest.mark.parametrize("kind", ACCEPTED)
def test_any_precision_and_a_little_overshoot_pass_as_float32(host, kind):
    from realisr.host.images import checked_image
    from realisr.nodes.image import AlignColors, DegradeImage, UpscaleForRestoration
    from realisr.nodes.vicr import DiptychBuilder

    image = ACCEPTED[kind]()
    assert torch.equal(checked_image(image), image.float())
    for node in (UpscaleForRestoration, AlignColors, DegradeImage, DiptychBuilder):
        result = host.run(node, **given_to(node, "image", image))[0]
        assert result.dtype == torch.float32 and torch.isfinite(result).all(), node.__name__


def test_float32_is_not_copied(host):
    from realisr.host.images import checked_image

    assert checked_image(GREY) is GREY


def test_an_error_says_which_of_two_images_it_is(host):
    from realisr.nodes.image import AlignColors

    with pytest.raises(ValueError, match=r"^Align Colors \(reference\): The image's values"):
        AlignColors.execute(GREY, GREY * 255, "adain")
