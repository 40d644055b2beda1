"""PSNR and SSIM: by hand, in NumPy's float64, against scikit-image, and as pyiqa has them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from realisr.models.fidelity import luma, psnr, ssim


def pictures(seed: int = 0, height: int = 40, width: int = 33) -> tuple[np.ndarray, np.ndarray]:
    """A smooth uint8 picture `[H, W, 3]` and a noisy one of it."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / 12
    smooth = np.stack([np.sin(rows + k) + np.cos(columns * (1 + k / 3)) for k in range(3)], -1)
    reference = (127 + 50 * smooth).clip(0, 255).astype(np.uint8)
    noisy = (reference + rng.normal(0, 8, reference.shape)).clip(0, 255).astype(np.uint8)
    return noisy, reference


def tensor(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).movedim(-1, 1).float() / 255


def y_of(image: np.ndarray) -> np.ndarray:
    """MATLAB's rgb2ycbcr, first channel, in levels."""
    return image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def test_psnr_of_a_constant_difference_by_hand():
    """51 levels on RGB is a fifth of the peak; on luma in studio range 219/255 of that."""
    dark, light = torch.full((1, 3, 16, 16), 0.4), torch.full((1, 3, 16, 16), 0.6)
    assert psnr(dark, light, "rgb").item() == pytest.approx(20 * math.log10(5), abs=1e-5)
    assert psnr(dark, light, "y").item() == pytest.approx(20 * math.log10(5 * 255 / 219), abs=1e-5)


def test_luma_by_hand():
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    levels = luma(corners.T.reshape(1, 3, 1, 5)).flatten() * 255
    assert levels.tolist() == pytest.approx([16, 235, 16 + 65.481, 16 + 128.553, 16 + 24.966], abs=1e-9)


def test_equal_images_have_80_decibels():
    image = tensor(pictures()[0])
    assert psnr(image, image).item() == pytest.approx(80)
    assert ssim(image, image).item() == pytest.approx(1)


@pytest.mark.parametrize("border", [0, 4])
def test_psnr_is_numpys(border: int):
    noisy, reference = pictures()
    inner = (slice(border, -border or None),) * 2
    for channel, difference in (("y", y_of(noisy) - y_of(reference)), ("rgb", noisy.astype(float) - reference)):
        expected = 10 * math.log10(1 / (np.square(difference[inner] / 255).mean() + 1e-8))
        assert psnr(tensor(noisy), tensor(reference), channel, border).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("border", [0, 4])
def test_ssim_is_scikit_images(border: int):
    """Its window is the same; its map is taken where the window fits into the image."""
    noisy, reference = pictures()
    inside = (slice(border + 5, -border - 5),) * 2
    luma_maps = [np.round(y_of(image)) for image in (noisy, reference)]
    for channel, (x, y), axis in (("y", luma_maps, None), ("rgb", (noisy, reference), 2)):
        _, similarity = structural_similarity(
            x.astype(np.float64),
            y.astype(np.float64),
            data_range=255,
            channel_axis=axis,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        assert similarity[inside].min() > 0, "the picture should have no negative term, which pyiqa counts as 0"
        found = ssim(tensor(noisy), tensor(reference), channel, border).item()
        assert found == pytest.approx(similarity[inside].mean(), abs=1e-6)


def test_opposite_structure_counts_as_none():
    noisy, _ = pictures()
    grey = np.broadcast_to(noisy[..., :1], noisy.shape)
    found = ssim(tensor(grey), 1 - tensor(grey)).item()
    assert 0 <= found < 0.05


@pytest.mark.parametrize("channel", ["y", "rgb"])
@pytest.mark.parametrize("border", [0, 4])
def test_they_are_pyiqas(channel: str, border: int):
    from realisr.services.iqa.offline import importable

    with importable():
        import pyiqa
    options = {"test_y_channel": True, "color_space": "ycbcr"} if channel == "y" else {}
    theirs = [
        pyiqa.create_metric("psnr", device="cpu", crop_border=border, **options),
        pyiqa.create_metric("ssim" if channel == "y" else "ssimc", device="cpu", crop_border=border, **options),
    ]
    noisy, reference = (tensor(*images) for images in zip(*(pictures(seed) for seed in range(3)), strict=True))
    # Theirs are in float32, where a luma half way between two levels may round the other way.
    for ours, their, tolerance in ((psnr, theirs[0], 1e-4), (ssim, theirs[1], 1e-4)):
        found = ours(noisy, reference, channel, border)
        assert found.dtype == torch.float64
        assert torch.allclose(found, their(noisy, reference).double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ((1, 3, 16, 16), (1, 3, 16, 17), "one shape"),
        ((1, 1, 16, 16), (1, 1, 16, 16), "RGB"),
        ((1, 3, 16, 18), (1, 3, 16, 18), "18 x 16 pixels is too small: 19 are needed"),
    ],
)
def test_what_cannot_be_compared(one, other, message: str):
    with pytest.raises(ValueError, match=message):
        ssim(torch.rand(one), torch.rand(other), crop_border=4)
