"""VOSR's features of many tiles, which are made when a tile's turn comes: once, in one thread, and the same as held."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.autoencoders import patch_vae
from harness.checkpoints import dinov2
from harness.two_devices import Calls, split, two_devices
from harness.vosr import TinyVOSR

SIDE = 128
TILES = 25
"""Of 32 pixels, 8 of which are their neighbours', too."""


@pytest.fixture(scope="module")
def parts(host) -> tuple[TinyVOSR, Any]:
    from realisr.host.vosr.vision import load_dinov2

    tiny = TinyVOSR.create(host, "tiny_streamed", seed=3, latent_channels=16, depth=1, has_end_time=True)
    name = host.save_model("clip_vision", "streamed_dinov2.safetensors", dinov2(depth=1))
    return tiny, load_dinov2(host.models / "clip_vision" / name, num_heads=1)


class Encoder:
    """The vision encoder as tiles' features are made with it: how many tiles, in which threads."""

    def __init__(self, encode: Any):
        self.encode = encode
        self.tiles, self.threads = 0, set[int]()

    def __call__(self, vision: Any, crops: Tensor) -> Tensor:
        self.tiles += len(crops)
        self.threads.add(threading.get_ident())
        return self.encode(vision, crops)


@pytest.fixture
def encoder(host, monkeypatch) -> Encoder:
    from realisr.host.tiling import sampling
    from realisr.host.vosr import conditioning

    watched = Encoder(conditioning.encode_vosr_features)
    monkeypatch.setattr(conditioning, "encode_vosr_features", watched)
    monkeypatch.setattr(conditioning, "FEATURE_TILES", 1)
    monkeypatch.setattr(conditioning, "STREAMED_TILES", 4)
    monkeypatch.setattr(sampling, "CELLS_PER_FORWARD", 1)
    return watched


def restored(model: Any, vision: Any) -> Tensor:
    from realisr.host.vosr.conditioning import EncodeOptions, SquareTiles
    from realisr.host.vosr.restore import VOSRRestoreOptions, restore

    image = torch.rand(1, SIDE // 4, SIDE // 4, 3, generator=torch.Generator().manual_seed(4))
    options = VOSRRestoreOptions(SIDE, SIDE, 1, 1, encode=EncodeOptions(vae_tile=64), tiles=SquareTiles(32, 8))
    with torch.inference_mode():
        return restore(model, patch_vae(), vision, image, options)


def hold_at_most(monkeypatch: pytest.MonkeyPatch, tiles: int) -> None:
    from realisr.host.vosr import conditioning

    monkeypatch.setattr(conditioning, "HELD_TILES", tiles)


@pytest.mark.parametrize("together", [1, 3])
def test_every_tile_is_looked_at_once(parts, encoder, monkeypatch, together):
    """Also where tiles that run together lie on both sides of the end of what is held."""
    from realisr.host.tiling import sampling

    tiny, vision = parts
    monkeypatch.setattr(sampling, "CELLS_PER_FORWARD", together * 4 * 4)
    expected = restored(tiny.load(), vision)
    assert encoder.tiles == TILES
    hold_at_most(monkeypatch, 2)
    calls = Calls()
    assert torch.equal(restored(calls.watch(tiny.load()), vision), expected)
    assert max(calls.items) == together
    assert encoder.tiles == 2 * TILES


def test_two_devices_find_all_features_ready(parts, encoder, monkeypatch):
    """Their threads ask for different tiles at once, and neither may load the encoder where the other one runs."""
    tiny, vision = parts
    expected = restored(tiny.load(), vision)
    hold_at_most(monkeypatch, 2)
    with two_devices():
        calls = Calls()
        result = restored(split(calls.watch(tiny.load())), vision)
    assert torch.equal(result, expected)
    assert [len(calls.items), len(calls.items_per_copy)] == [TILES, 2]
    assert encoder.threads == {threading.get_ident()}


def test_the_bar_moves_while_features_are_made_pixels_enlarged_and_colours_aligned(parts, encoder, monkeypatch):
    import comfy.utils

    from realisr.host.vosr import restore
    from realisr.models import image as images

    tiny, vision = parts
    hold_at_most(monkeypatch, 2)
    monkeypatch.setattr(images, "STRIP_ROWS", 32)
    # The host leaves out movements that come too soon after one another.
    for limit in ("INTERVAL", "PERCENT"):
        monkeypatch.setattr(comfy.utils, f"PROGRESS_THROTTLE_MIN_{limit}", 0)
    shown: list[float] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: shown.append(value / total))

    def moves(call: Any) -> Any:
        """Such a call; what is shown during it goes to `during`."""

        def called(*args: Any, **kwargs: Any) -> Any:
            before = len(shown)
            result = call(*args, **kwargs)
            during.setdefault(call.__name__, []).append(len(set(shown[before:])))
            return result

        return called

    during: dict[str, list[int]] = {}
    from realisr.host.vosr import conditioning

    monkeypatch.setattr(conditioning, "tile_features", moves(conditioning.tile_features))
    for name in ("upscale", "align_colors"):
        monkeypatch.setattr(restore, name, moves(getattr(restore, name)))
    restored(tiny.load(), vision)
    assert len(during["tile_features"]) == -(-TILES // 4)
    assert all(count >= 4 for calls in during.values() for count in calls[:-1] or calls), during
    assert shown == sorted(shown) and shown[-1] == 1
