"""The grid of tiles in pixels, and its picture."""

from __future__ import annotations

import pytest
import torch

from realisr.models.tiles.layout import TileLayout
from realisr.models.tiles.preview import draw_tiles


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


def test_the_picture_shows_the_image_and_every_tile():
    layout = TileLayout.fitted(256, 384, 128, 32)
    image = torch.full((2, 256, 384, 4), 0.5)
    drawn, bare = draw_tiles(layout, image), draw_tiles(layout)
    assert drawn.shape == bare.shape == (1, 256, 384, 3)
    assert drawn.min() >= 0 and drawn.max() <= 1
    grey = (drawn - 0.5).abs().amax(-1) < 0.01
    for box in layout.pixel_boxes:
        shown = grey[0, box.top : box.top + box.height, box.left : box.left + box.width]
        # Its border, and its number in the middle.
        assert not shown[:2].any() and not shown[:, :2].any()
        middle = drawn[0, box.top + 40 : box.top + 88, box.left + 40 : box.left + 88]
        assert middle.max() == 1.0 and middle.min() == 0.0
    assert grey.float().mean() > 0.5


def test_a_large_picture_is_shown_smaller():
    assert draw_tiles(TileLayout.fitted(4096, 8192, 512, 128), longest=512).shape == (1, 256, 512, 3)
    assert draw_tiles(TileLayout.fitted(8, 8, 16, 0)).shape == (1, 8, 8, 3)
