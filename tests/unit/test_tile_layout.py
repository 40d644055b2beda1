"""The grid of tiles in pixels, and its picture."""

from __future__ import annotations

import pytest
import torch

from realisr.models.tiles.layout import TileLayout
from realisr.models.tiles.preview import draw_tiles, own_parts


def test_boxes_in_pixels_cover_the_image_and_end_at_its_border():
    layout = TileLayout.fitted(768, 1280, 512, 128)
    starts = [(box.top, box.left) for box in layout.pixel_boxes]
    assert starts == [(0, 0), (0, 384), (0, 768), (256, 0), (256, 384), (256, 768)]
    assert {(box.height, box.width) for box in layout.pixel_boxes} == {(512, 512)}
    assert len(layout) == 6 and layout.image_size == (768, 1280)


def test_a_tile_larger_than_the_image_is_the_image():
    layout = TileLayout.fitted(256, 1000, 512, 64)
    assert [(box.height, box.width) for box in layout.pixel_boxes] == [(256, 512)] * 3
    assert len(TileLayout.fitted(256, 256, 512, 64)) == 1


def test_pixels_beyond_the_last_cell_have_no_latent():
    layout = TileLayout.fitted(517, 770, 512, 128)
    assert layout.image_size == (512, 768)
    assert (layout.grid.height, layout.grid.width) == (64, 96)


@pytest.mark.parametrize("align", [1, 2, 8])
def test_tiles_start_at_multiples_of_align(align):
    grid = TileLayout.fitted(1024, 1536, 400, 100, align).grid
    assert all(start % align == 0 for start in (*grid.rows, *grid.columns))
    assert grid.tile_height == 50 // align * align


def test_zero_overlap_is_allowed():
    grid = TileLayout.fitted(512, 1024, 256, 0).grid
    assert grid.rows == [0, 32] and grid.columns == [0, 32, 64, 96]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((7, 512, 512, 128), r"512x7 pixels is smaller than one latent cell"),
        ((512, 512, 8, 0), r"at least 16 px \(align 2\), got 8 px"),
        ((512, 512, 256, 256), r"smaller than the tile size 256 px, got 256 px"),
        ((512, 512, 256, -8), r"at least 0 .* got -8 px"),
    ],
)
def test_bad_sizes_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        TileLayout.fitted(*numbers)


def test_crops_of_an_image_are_the_tiles():
    layout, image = TileLayout.fitted(100, 150, 64, 16), torch.rand(2, 100, 150, 4)
    crops = list(layout.tiles(image, "Captioner"))
    assert len(crops) == len(layout)
    for box, crop in zip(layout.pixel_boxes, crops, strict=True):
        assert torch.equal(crop, image[:, box.top : box.top + 64, box.left : box.left + 64])
    with pytest.raises(ValueError, match=r"Captioner: .* 144x96 pixels, this one has 160x100"):
        list(layout.tiles(torch.rand(1, 100, 160, 3), "Captioner"))


def hue(pixel: torch.Tensor) -> tuple[int, ...]:
    """Which of a pixel's colours are strong, whatever its brightness."""
    return tuple(((pixel - pixel.min()) / (pixel.max() - pixel.min()) * 4).round().int().tolist())


@pytest.mark.parametrize("with_image", [True, False])
def test_one_can_tell_every_tile_of_the_picture(with_image: bool):
    """Its own part has a colour that no neighbour has, and its number in the middle; shared parts are darker."""
    layout = TileLayout.fitted(288, 480, 160, 64)
    image = torch.full((2, 288, 480, 4), 0.5) if with_image else None
    (drawn,) = draw_tiles(layout, image)
    assert drawn.shape == (288, 480, 3) and drawn.min() >= 0 and drawn.max() <= 1
    rows, columns = len(layout.grid.rows), len(layout.grid.columns)
    assert (rows, columns) == (3, 5)
    parts = own_parts(layout, 1.0)
    hues = []
    for left, top, right, bottom in parts:
        middle = drawn[round((top + bottom) / 2) - 20 :, round((left + right) / 2) - 20 :][:40, :40]
        assert middle.max() == 1.0 and middle.min() < 0.05, "a number in white and black"
        hues.append(hue(drawn[round(top) + 12, round(left) + 12]))
    for tile in range(rows * columns):
        row, column = divmod(tile, columns)
        near = [(row, column + 1), (row + 1, column), (row + 1, column + 1), (row + 1, column - 1)]
        for other in (r * columns + c for r, c in near if r < rows and 0 <= c < columns):
            assert hues[tile] != hues[other], (tile, other)
    # Columns 0 to 96 are the first tile's alone, the next 64 it shares with the second.
    assert drawn[6, 60].mean() > drawn[6, 100].mean() + 0.1


def test_parts_of_the_picture_lie_side_by_side():
    """Each pixel belongs to one tile, and lies in it."""
    layout = TileLayout.fitted(304, 520, 128, 40)
    covered = torch.zeros(304, 520)
    for (left, top, right, bottom), box in zip(own_parts(layout, 1.0), layout.pixel_boxes, strict=True):
        assert box.left <= left and right < box.left + box.width and box.top <= top and bottom < box.top + box.height
        covered[round(top) : round(bottom) + 1, round(left) : round(right) + 1] += 1
    assert (covered == 1).all()


def test_a_large_picture_is_shown_smaller():
    assert draw_tiles(TileLayout.fitted(4096, 8192, 512, 128), longest=512).shape == (1, 256, 512, 3)
    assert draw_tiles(TileLayout.fitted(8, 8, 16, 0)).shape == (1, 8, 8, 3)
