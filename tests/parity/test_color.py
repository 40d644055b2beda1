"""Image handling and colour alignment against the reference (`image_io`, `color_align`)."""

from __future__ import annotations

import pytest
import torch

from parity import golden
from realisr.models import color
from realisr.models.image import LANCZOS, from_bytes, gaussian_blur, resize, to_bytes, truncate_to_bytes, upscale

LQ_TOLERANCE = 1e-6
BLUR_TOLERANCE = 2e-6
WAVELET_LEVELS, WAVELET_EXACT = 1, 0.999

IMAGE_IO = golden.cases("image_io")
COLOR = golden.cases("color_align")


def as_image(u8: torch.Tensor) -> torch.Tensor:
    """`[H, W, 3]` 8-bit -> `[1, H, W, 3]` float."""
    return from_bytes(u8)[None]


@pytest.mark.parametrize("case", IMAGE_IO)
def test_upscaling_is_pillows(case):
    if "in/sr" in case:
        image = case["in/sr"] * 0.5 + 0.5
        golden.assert_levels(truncate_to_bytes(image)[0].movedim(0, -1), case["out/u8"], 0, 1.0)
        return
    source = case["in/u8"]
    height, width = (side * case.parameters["up"] for side in source.shape[:2])
    upscaled = upscale(as_image(source), width, height)
    golden.assert_levels(to_bytes(upscaled)[0], case["out/u8"], 0, 1.0)
    golden.assert_within(upscaled.movedim(-1, 1) * 2 - 1, case["out/lq"], LQ_TOLERANCE)


@pytest.mark.parametrize("case", COLOR)
def test_adain_to_the_bit(case):
    aligned = color.align_colors(as_image(case["in/sr"]), as_image(case["in/lq"]), "adain", quantise=True)
    golden.assert_levels(to_bytes(aligned)[0], case["out/adain"], 0, 1.0)


@pytest.mark.parametrize("case", COLOR)
def test_wavelet_within_a_level(case):
    aligned = color.align_colors(as_image(case["in/sr"]), as_image(case["in/lq"]), "wavelet", quantise=True)
    golden.assert_levels(to_bytes(aligned)[0], case["out/wavelet"], WAVELET_LEVELS, WAVELET_EXACT)


@pytest.mark.parametrize("case", COLOR)
def test_lanczos_and_blur(case):
    height, width = case["in/sr"].shape[:2]
    resized = resize(as_image(case["in/lq"]), width, height, LANCZOS)
    if "mid/lq_resized_u8" in case:
        golden.assert_levels(to_bytes(resized)[0], case["mid/lq_resized_u8"], 0, 1.0)
    for key, image in (("mid/blur_lq", resized), ("mid/blur_sr", as_image(case["in/sr"]))):
        if key in case:
            blurred = gaussian_blur(image.movedim(-1, 1), color.BLUR_SIGMA, color.BLUR_RADIUS).movedim(1, -1)[0]
            golden.assert_within(blurred, case[key], BLUR_TOLERANCE, key)
