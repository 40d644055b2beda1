"""Colour alignment: what it does to colours, and to what it must leave alone."""

from __future__ import annotations

import pytest
import torch

from realisr.models import color
from realisr.models.image import gaussian_blur


def photo(batch: int = 1, height: int = 40, width: int = 56, channels: int = 3) -> torch.Tensor:
    """Smooth shapes with some noise, away from the ends of the range."""
    rows, columns = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    waves = torch.stack([torch.sin(rows * (c + 1) + columns) for c in range(channels)], dim=-1)
    return 0.5 + 0.15 * waves + 0.03 * torch.rand(batch, height, width, channels)


def blurred(images: torch.Tensor) -> torch.Tensor:
    return gaussian_blur(images.movedim(-1, 1), color.BLUR_SIGMA, color.BLUR_RADIUS).movedim(1, -1)


@pytest.mark.parametrize("method", ["adain", "wavelet"])
def test_a_tint_is_removed(method):
    reference = photo()
    tinted = reference * 0.8 + torch.tensor([0.1, 0.0, -0.05])
    aligned = color.align_colors(tinted, reference, method)
    assert (aligned - reference).abs().mean() < (tinted - reference).abs().mean() / 10


def test_wavelet_keeps_detail_of_the_image():
    image, reference = photo(), photo()
    detail = image - blurred(image)
    aligned = color.align_colors(image, reference, "wavelet")
    torch.testing.assert_close(aligned - blurred(reference), detail, atol=1e-5, rtol=0)


def test_none_changes_nothing():
    image = photo()
    assert torch.equal(color.align_colors(image, photo(), "none"), image)


@pytest.mark.parametrize("method", ["adain", "wavelet"])
def test_items_of_a_batch_are_independent(method):
    images, references = photo(3), photo(3)
    together = color.align_colors(images, references, method)
    shared = color.align_colors(images, references[:1], method)
    for index in range(3):
        item = slice(index, index + 1)
        assert torch.equal(together[item], color.align_colors(images[item], references[item], method))
        assert torch.equal(shared[item], color.align_colors(images[item], references[:1], method))


@pytest.mark.parametrize("method", ["adain", "wavelet"])
def test_alpha_is_passed_through(method):
    image, reference = photo(channels=4), photo(channels=4)
    aligned = color.align_colors(image, reference, method)
    assert torch.equal(aligned[..., 3], image[..., 3])
    assert torch.equal(aligned[..., :3], color.align_colors(image[..., :3], reference[..., :3], method))


@pytest.mark.parametrize("method", ["adain", "wavelet"])
@pytest.mark.parametrize("size", [(1, 2), (2, 1), (3, 30), (25, 7)])
def test_tiny_images(method, size):
    aligned = color.align_colors(photo(1, *size), photo(1, 9, 9), method)
    assert aligned.shape == (1, *size, 3)
    assert aligned.isfinite().all()


def test_input_is_not_modified():
    image, reference = photo(), photo()
    before = image.clone()
    color.align_colors(image, reference, "adain")
    assert torch.equal(image, before)


@pytest.mark.parametrize(
    ("image", "reference", "method", "message"),
    [
        (photo(2), photo(3), "adain", "the reference has 3 images and there are 2 to align"),
        (photo(channels=1), photo(), "adain", "the image has 1 channels, the reference 3"),
        (photo(), photo(), "lab", "unknown colour alignment 'lab': choose one of adain, wavelet, none"),
    ],
)
def test_what_does_not_fit_is_refused(image, reference, method, message):
    with pytest.raises(ValueError, match=message):
        color.align_colors(image, reference, method)
