"""Places that a comparison enlarges, and the sheet."""

from __future__ import annotations

import pytest
import torch

from realisr.models.compare.places import crop_box, most_different, parse_places
from realisr.models.compare.sheet import BACKGROUND, Entry, draw_sheet


def test_places_as_people_write_them():
    assert parse_places("50 40; 12.5,80\n0 100;") == [(0.5, 0.4), (0.125, 0.8), (0.0, 1.0)]
    assert parse_places("  ") == []


@pytest.mark.parametrize("text", ["here", "50", "50 40 30", "50 101", "-1 5", "nan 5", "inf 5"])
def test_what_is_no_place(text: str):
    with pytest.raises(ValueError, match="Write x and y in percent"):
        parse_places(text)


@pytest.mark.parametrize(
    ("place", "box"),
    [((0.5, 0.5), (45, 25, 55, 35)), ((0.0, 0.0), (0, 0, 10, 10)), ((1.0, 1.0), (90, 50, 100, 60))],
)
def test_crops_lie_inside(place, box):
    assert crop_box(100, 60, 10, place) == box


def test_a_crop_of_a_picture_that_is_smaller():
    assert crop_box(8, 6, 96, (0.2, 0.9)) == (0, 0, 6, 6)


def brute_force(images: list[torch.Tensor], side: int) -> tuple[int, int]:
    """Left and top of the square in which images differ most, by looking at every one."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    variance = torch.stack([(image.double() * weights).sum(-1) for image in images]).var(0, unbiased=False)
    height, width = variance.shape
    scores = {
        (left, top): float(variance[top : top + side, left : left + side].sum())
        for top in range(height - side + 1)
        for left in range(width - side + 1)
    }
    return max(scores, key=scores.__getitem__)


def test_the_worst_square_is_found():
    images = [torch.rand(24, 36, 3) for _ in range(3)]
    ((x, y),) = most_different(images, 7, 1)
    left, top = brute_force(images, 7)
    assert (x * 36 - 3.5, y * 24 - 3.5) == pytest.approx((left, top))


def test_planted_differences_are_found_worst_first_and_apart():
    base = torch.rand(60, 80, 3)
    other = base.clone()
    other[10:16, 20:26] += 0.5
    other[40:46, 60:66] += 0.2
    places = most_different([base, other, base], 12, 5)
    assert len(places) == 2, "where all agree there is nothing to look at"
    for (x, y), (cx, cy) in zip(places, [(23, 13), (63, 43)], strict=True):
        assert abs(x * 80 - cx) <= 6 and abs(y * 60 - cy) <= 6


def test_squares_do_not_overlap_and_end_where_no_more_fit():
    images = [torch.rand(30, 30, 3) for _ in range(2)]
    places = most_different(images, 12, 50)
    boxes = [crop_box(30, 30, 12, place) for place in places]
    assert 1 < len(boxes) <= 4
    for index, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:index]:
            assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]


def test_equal_images_and_single_ones_have_no_places():
    image = torch.rand(20, 20, 3)
    assert most_different([image, image], 5, 3) == []
    assert most_different([image], 5, 3) == []


def test_crops_on_the_sheet_are_the_pixels_themselves():
    image = torch.zeros(40, 40, 3)
    image[16:24, 16:24] = torch.tensor([1.0, 0.0, 0.0])
    sheet = draw_sheet([Entry("one", image)], [(0.5, 0.5)], 16, 64, 3)
    crop = sheet[-12 - 64 - 12 : -12 - 12][..., :]
    red = (crop == torch.tensor([1.0, 0.0, 0.0])).all(-1).sum()
    # 8 of 16 pixels a side, four times as large.
    assert red == 32 * 32


def test_columns_go_into_bands_and_cards_keep_their_place():
    image = torch.rand(30, 40, 3)
    entries = [
        Entry("a", image, ("1 s",)),
        Entry("b", None, card="Missing:\n" + "file.safetensors " * 40),
        Entry("c", image),
    ]
    wide, wrapped = (draw_sheet(entries, [(0.5, 0.5)], 8, 80, columns) for columns in (3, 2))
    assert wide.shape[1] == 3 * (80 + 12) + 12
    assert wrapped.shape[1] == 2 * (80 + 12) + 12
    assert wrapped.shape[0] > 1.5 * wide.shape[0]
    background = torch.tensor(BACKGROUND) / 255
    assert torch.allclose(wide[0, 0], background, atol=1e-6)


def test_only_cards_make_a_sheet_too():
    sheet = draw_sheet([Entry("a", None, card="Nothing here")], [], 8, 100, 4)
    assert sheet.std() > 0
