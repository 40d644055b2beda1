"""Entropy Heatmap."""

from __future__ import annotations

import math

import pytest
import torch

FIXED, AUTO = "0 to ln 16384", "auto"


@pytest.fixture
def run(host):
    from realisr.nodes.pure_entropy import EntropyHeatmap

    def run(entropy, value_range=FIXED, opacity=0.6, image=None, **named):
        named |= {"entropy": entropy, "value_range": value_range, "opacity": opacity, "image": image}
        return host.run(EntropyHeatmap, **named)[0]

    return run


def test_the_fixed_range_compares_images(run):
    low, high = torch.full((1, 8, 8), 0.2), torch.full((1, 8, 8), 0.8)
    together = run(torch.cat([low, high]))
    assert together.shape == (2, 8, 8, 3)
    assert torch.equal(together, torch.cat([run(low), run(high)]))
    assert together[1].mean() > together[0].mean() + 0.1


def test_the_auto_range_stretches_each_image(run):
    ramp = torch.linspace(0, 1, 64).view(1, 8, 8)
    torch.testing.assert_close(run(0.3 + 0.1 * ramp, AUTO), run(ramp), rtol=0, atol=1e-3)
    both = run(torch.cat([0.3 + 0.1 * ramp, 0.5 * ramp]), AUTO)
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-3)
    assert torch.equal(run(torch.full((1, 4, 4), 0.5), AUTO), run(torch.zeros(1, 4, 4))), "a flat map has no range"


def test_either_direction(run):
    """Bright where unsure unless the paper's direction is chosen, also in workflows saved before there was a choice."""
    ramp = torch.linspace(0, 1, 64).view(1, 8, 8)
    for value_range in (FIXED, AUTO):
        bright, dark = (run(ramp, value_range, direction=f"{word} where unsure") for word in ("bright", "dark"))
        assert torch.equal(run(ramp, value_range), bright)
        assert (bright.mean(-1).flatten().diff() > 0).sum() > 60 and (dark.mean(-1).flatten().diff() < 0).sum() > 60
        torch.testing.assert_close(dark, run(1 - ramp, value_range), rtol=0, atol=1e-5)


def test_over_an_image(run):
    entropy, image = torch.rand(1, 8, 8), torch.rand(1, 8, 8, 3)
    assert torch.equal(run(entropy, opacity=0.0, image=image), image)
    torch.testing.assert_close(run(entropy, opacity=1.0, image=image), run(entropy))
    half = run(entropy, opacity=0.5, image=image)
    torch.testing.assert_close(half, (image + run(entropy)) / 2)


def test_takes_the_images_size_and_drops_alpha(run):
    assert run(torch.rand(1, 8, 8), image=torch.rand(1, 20, 30, 4)).shape == (1, 20, 30, 3)


@pytest.mark.parametrize(("maps", "images", "results"), [(1, 3, 3), (3, 1, 3), (2, 2, 2)])
def test_batches(run, maps, images, results):
    assert run(torch.rand(maps, 8, 8), image=torch.rand(images, 8, 8, 3)).shape == (results, 8, 8, 3)


def test_batches_that_do_not_go_together(run):
    with pytest.raises(ValueError, match="2 entropy maps and 3 images"):
        run(torch.rand(2, 8, 8), image=torch.rand(3, 8, 8, 3))


def test_the_restorers_entropy_is_in_the_maps_unit(host):
    """1 stands for ln 16384 nats, the entropy of all codes being equally likely."""
    from realisr.models.pure.logits import entropy
    from realisr.nodes.pure import MAX_ENTROPY

    assert math.isclose(entropy(torch.zeros(16384)).item(), MAX_ENTROPY, rel_tol=1e-3)
