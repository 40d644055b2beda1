"""The colour scale of entropy maps."""

from __future__ import annotations

import torch

from realisr.models.pure.heatmap import heat, oklab_to_srgb


def luminance(colours: torch.Tensor) -> torch.Tensor:
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return linear @ torch.tensor([0.2126, 0.7152, 0.0722])


def test_larger_is_lighter_everywhere():
    colours = heat(torch.linspace(0, 1, 1001))
    assert colours.shape == (1001, 3) and colours.min() >= 0 and colours.max() <= 1
    assert (luminance(colours).diff() > 0).all()
    assert luminance(colours[0]) < 0.02 and luminance(colours[-1]) > 0.8


def test_equal_steps_look_alike():
    """Perceived lightness (the cube root of luminance) rises evenly, and no hue jumps."""
    colours = heat(torch.linspace(0, 1, 101))
    lightness = luminance(colours) ** (1 / 3)
    assert lightness.diff().max() < 3 * lightness.diff().mean()
    assert colours.diff(dim=0).abs().max() < 0.06


def test_values_outside_are_the_ends():
    assert torch.equal(heat(torch.tensor([-1.0, 2.0])), heat(torch.tensor([0.0, 1.0])))
    assert heat(torch.rand(2, 3, 4)).shape == (2, 3, 4, 3)


def test_oklab_of_known_colours():
    known = torch.tensor([[1.0, 0.0, 0.0], [0.62796, 0.22486, 0.12585], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(oklab_to_srgb(known), expected, rtol=0, atol=2e-3)
