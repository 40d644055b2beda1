"""The Degrade Image node."""

from __future__ import annotations

import pytest
import torch

SIMPLE = {"degradation": "simple", "blur_sigma": 0.5, "noise_sigma": 8.0, "jpeg_quality": 60}
MODES = [SIMPLE, {"degradation": "real-world (first order)"}, {"degradation": "real-world (second order)"}]


def degrade(host, image, seed=7, scale=2.0, degradation=SIMPLE, output_size="low resolution"):
    from realisr.nodes.image import DegradeImage

    inputs = {"seed": seed, "scale": scale, "degradation": degradation, "output_size": output_size}
    (result,) = host.run(DegradeImage, image=image, **inputs)
    return result


@pytest.mark.parametrize("degradation", MODES, ids=lambda mode: mode["degradation"])
def test_an_image_of_a_batch_is_degraded_as_alone(host, degradation):
    batch = torch.rand(3, 30, 41, 3)
    together = degrade(host, batch, degradation=degradation)
    assert together.shape == (3, 15, 20, 3)
    for index in range(3):
        alone = degrade(host, batch[index : index + 1], seed=7 + index, degradation=degradation)
        assert torch.equal(together[index], alone[0])
    assert not torch.equal(together, degrade(host, batch, seed=8, degradation=degradation))


@pytest.mark.parametrize("degradation", MODES, ids=lambda mode: mode["degradation"])
def test_the_input_size_comes_back(host, degradation):
    from realisr.models.image import upscale

    image = torch.rand(1, 30, 41, 3)
    low = degrade(host, image, scale=3.0, degradation=degradation)
    full = degrade(host, image, scale=3.0, degradation=degradation, output_size="input size")
    assert low.shape == (1, 10, 14, 3)
    assert torch.equal(full, upscale(low, 41, 30))


def test_alpha_is_resized_and_not_degraded(host):
    from realisr.models.image import upscale

    image = torch.rand(1, 32, 32, 4)
    result = degrade(host, image)
    assert torch.equal(result[..., :3], degrade(host, image[..., :3]))
    assert torch.equal(result[..., 3:], upscale(image[..., 3:], 16, 16))
    assert torch.equal(degrade(host, image, scale=1.0)[..., 3], image[..., 3])


def test_nothing_to_do_keeps_the_image(host):
    nothing = {"degradation": "simple", "blur_sigma": 0.0, "noise_sigma": 0.0, "jpeg_quality": 0}
    image = torch.rand(1, 16, 16, 3)
    assert (degrade(host, image, scale=1.0, degradation=nothing) - image).abs().max() <= 0.5 / 255 + 1e-6


def test_the_largest_seed_works(host):
    assert degrade(host, torch.rand(2, 8, 8, 3), seed=0xFFFFFFFFFFFFFFFF).shape == (2, 4, 4, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(1, 8, 8, 1), r"Degrade Image: Expected images .*3 or 4 channels\], got \[1, 8, 8, 1\]"),
        (torch.full((1, 8, 8, 3), float("nan")), "Degrade Image: The image holds 192 values that are not numbers"),
    ],
)
def test_images_it_cannot_take(host, image, message):
    with pytest.raises(ValueError, match=message):
        degrade(host, image)


def test_the_example_photo_is_the_file(host):
    import numpy as np
    from PIL import Image

    from realisr.nodes.image import PHOTOS, ExamplePhoto

    (image,) = host.run(ExamplePhoto, photo="moose")
    assert image.shape == (1, 512, 768, 3) and image.dtype == torch.float32
    assert np.array_equal((image[0] * 255).round().byte().numpy(), np.asarray(Image.open(PHOTOS / "moose.jpg")))
    assert {path.name for path in PHOTOS.iterdir()} == {"moose.jpg", "README.md"}
