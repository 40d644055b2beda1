"""The Align Colors node."""

from __future__ import annotations

import pytest
import torch


def test_it_runs_as_a_node(host):
    from realisr.models.color import align_colors
    from realisr.nodes.image import AlignColors

    image, reference = torch.rand(2, 20, 24, 4), torch.rand(1, 10, 12, 3)
    (aligned,) = host.run(AlignColors, image=image, reference=reference, method="wavelet")
    assert torch.equal(aligned, align_colors(image, reference, "wavelet"))
    assert aligned.shape == image.shape


@pytest.mark.parametrize("where", ["image", "reference"])
def test_values_that_are_not_numbers_are_refused(host, where):
    from realisr.nodes.image import AlignColors

    inputs = {"image": torch.rand(1, 8, 8, 3), "reference": torch.rand(1, 8, 8, 3)}
    inputs[where][0, 2, 3, 1] = float("nan")
    with pytest.raises(ValueError, match=rf"Align Colors \({where}\): The image holds 1 values that are not numbers"):
        host.run(AlignColors, method="adain", **inputs)


def test_batches_that_do_not_fit_are_refused(host):
    from realisr.nodes.image import AlignColors

    with pytest.raises(ValueError, match="the reference has 2 images and there are 3 to align"):
        host.run(AlignColors, image=torch.rand(3, 8, 8, 3), reference=torch.rand(2, 8, 8, 3), method="adain")
