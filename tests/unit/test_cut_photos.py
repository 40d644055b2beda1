"""Cutting photos into tiles to train on."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

import cut_photos


@pytest.fixture
def photo(tmp_path):
    """Half texture, half plain."""
    pixels = np.full((200, 400, 3), 128, np.uint8)
    pixels[:, :200] = np.random.default_rng(0).integers(0, 255, (200, 200, 3))
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_photos_are_cut_into_tiles_without_the_plain_ones(photo, tmp_path, monkeypatch):
    out = tmp_path / "tiles"
    monkeypatch.setattr(sys, "argv", ["cut", str(photo), "--out", str(out), "--tile", "50", "--shrink", "2"])
    cut_photos.main()
    # 200 x 100 after shrinking: 8 tiles, 4 of them texture; 100 x 50 after another: 2, one of them texture.
    written = [np.array(Image.open(path)) for path in sorted(out.iterdir())]
    assert len(written) == 5
    assert all(tile.shape == (50, 50, 3) and cut_photos.edge_strength(tile) > 6 for tile in written)


def test_small_photos_give_no_tile(photo, tmp_path, monkeypatch):
    """Enlarging them would teach blur."""
    out = tmp_path / "tiles"
    monkeypatch.setattr(sys, "argv", ["cut", str(photo), "--out", str(out), "--tile", "101"])
    cut_photos.main()
    assert list(out.iterdir()) == []
