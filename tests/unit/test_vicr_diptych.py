"""The diptych: panels lie where the record says, padding comes off again, alpha survives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from realisr.models.vicr import diptych as vicr

SIZES = [(64, 48), (40, 56), (33, 70), (17, 100), (16, 16), (5, 200), (1, 1)]


@pytest.mark.parametrize("layout", vicr.LAYOUTS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_panels_lie_where_the_record_says(height, width, layout):
    image = torch.rand(2, height, width, 3)
    made = vicr.build_diptych(image, width, height, layout)
    record = made.diptych
    assert record.panel_width % 16 == record.panel_height % 16 == 0
    assert record.panel_width - width < 16 and record.panel_height - height < 16
    assert made.canvas.shape == (2, record.canvas_height, record.canvas_width, 3)
    assert made.mask.shape == made.canvas.shape[:3]

    lq, target = record.panel_boxes()
    planes = made.canvas.movedim(-1, 1)
    torch.testing.assert_close(lq.crop(planes)[..., :height, :width], image.movedim(-1, 1))
    assert (target.crop(planes) == vicr.EMPTY).all()
    assert (lq.crop(made.mask) == 0).all() and (target.crop(made.mask) == 1).all()
    assert made.mask.sum() * 2 == made.mask.numel()
    halves = vicr.split(planes, layout)
    assert torch.equal(halves[0], lq.crop(planes)) and torch.equal(halves[1], target.crop(planes))
    assert torch.equal(vicr.join(*halves, layout), planes)


@pytest.mark.parametrize("layout", vicr.LAYOUTS)
def test_panels_in_latent_cells(layout):
    record = vicr.Diptych(50, 30, layout)
    for pixels, cells in zip(record.panel_boxes(), record.panel_boxes(8), strict=True):
        assert [8 * getattr(cells, side) for side in ("top", "left", "height", "width")] == [
            getattr(pixels, side) for side in ("top", "left", "height", "width")
        ]


@pytest.mark.parametrize("layout", vicr.LAYOUTS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crop_takes_the_target_at_the_size_asked_for(height, width, layout):
    record = vicr.Diptych(width, height, layout)
    canvas = torch.rand(3, record.canvas_height, record.canvas_width, 3)
    panel = vicr.crop_target(canvas, record)
    _, target = record.panel_boxes()
    assert torch.equal(panel, target.crop(canvas.movedim(-1, 1)).movedim(1, -1)[:, :height, :width])


def test_sides_are_reflected_or_where_too_short_repeated():
    image = torch.arange(20.0).reshape(1, 1, 1, 20).expand(1, 1, 5, 20) + 100 * torch.arange(5.0).reshape(1, 1, 5, 1)
    padded = vicr.pad_panel(image)
    assert padded.shape == (1, 1, 16, 32)
    assert padded[0, 0, 0, 20:].tolist() == list(range(18, 6, -1))
    assert torch.equal(padded[0, 0, 5:], padded[0, 0, 4:5].expand(11, 32))


def test_layout_nearer_to_a_square():
    assert vicr.nearest_to_square(100, 100) == vicr.nearest_to_square(60, 100) == "side by side"
    assert vicr.nearest_to_square(101, 100) == "stacked"


def test_bicubic_is_keys_kernel_at_minus_a_half():
    """Doubling: the four taps of a = -0.5 at a quarter are known in closed form."""
    row = torch.tensor([0.2, 0.6, 0.4, 0.9, 0.1, 0.5])
    image = row.reshape(1, 1, 6, 1).expand(1, 6, 6, 3)
    doubled = vicr.bicubic(image, 12, 6)
    # Output column 5 lies at 2.25; weights of columns 1..4.
    weights = torch.tensor([-0.0703125, 0.8671875, 0.2265625, -0.0234375])
    torch.testing.assert_close(doubled[0, 3, 5, 0], (weights * row[1:5]).sum(), rtol=0, atol=1e-6)


def test_bicubic_clamps_and_does_not_round():
    edge = torch.zeros(1, 8, 8, 3)
    edge[:, :, 4:] = 1
    enlarged = vicr.bicubic(edge, 24, 24)
    assert enlarged.min() == 0 and enlarged.max() == 1
    assert ((enlarged * 255) % 1).count_nonzero() > 0
    assert torch.equal(vicr.bicubic(edge * 0.5, 8, 8), edge * 0.5)


def test_alpha_is_enlarged_by_itself_and_rejoined():
    image = torch.rand(2, 20, 24, 4)
    made = vicr.build_diptych(image, 48, 40, "side by side")
    assert made.canvas.shape[-1] == made.lq.shape[-1] == 3
    expected = F.interpolate(image[..., 3][:, None], (40, 48), mode="bicubic", antialias=True).clamp(0, 1)
    for count in (2, 4):
        restored = vicr.crop_target(torch.rand(count, *made.canvas.shape[1:]), made.diptych)
        assert restored.shape == (count, 40, 48, 4)
        torch.testing.assert_close(restored[..., 3], expected[:, 0].repeat(count // 2, 1, 1))


@pytest.mark.parametrize(
    ("canvas", "complaint"),
    [
        ((1, 48, 112, 3), "canvas of 96x48 pixels, the image is 112x48"),
        ((1, 48, 48, 3), "canvas of 96x48 pixels, the image is 48x48"),
        ((1, 48, 96, 4), "3 channels, got 4"),
        ((3, 48, 96, 3), "alpha of 2 images, which does not divide among 3"),
        ((1, 48, 96, 3), "alpha of 2 images, which does not divide among 1"),
    ],
)
def test_a_canvas_that_is_not_the_records(canvas, complaint):
    record = vicr.Diptych(40, 40, alpha=torch.ones(2, 40, 40, 1))
    with pytest.raises(ValueError, match=complaint):
        vicr.crop_target(torch.zeros(canvas), record)


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (1, 8, 8, 5), (8, 8, 3)])
def test_images_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"expected images \[B, H, W, 3 or 4\]"):
        vicr.build_diptych(torch.zeros(shape), 16, 16, "side by side")
