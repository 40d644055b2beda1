"""Bad tiles of whole-method nodes are restored again; everything else stays as it is, to the bit."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from harness.vosr import TinyVOSR

PIXEL_ARGS = {"ae_type": "pixel_unshuffle", "ae_downscale": 2, "ae_scale": 2.0}
AGAIN = "rerun with another seed"
LESS = "rerun with less creativity"


@pytest.fixture(scope="module")
def parts(host) -> tuple[Any, Any]:
    """Model and VAE of VOSR nano's kind, with random weights: their results are far from the input."""
    from realisr.host.vosr.vae import PIXEL_UNSHUFFLE, load_vosr_vae

    tiny = TinyVOSR.create(host, "tile_rerun", seed=5, latent_channels=12, context_width=0)
    (tiny.folder / "args.json").write_text(json.dumps(PIXEL_ARGS))
    return tiny.load(), load_vosr_vae(PIXEL_UNSHUFFLE)


def picture(height: int, width: int, batch: int = 1, channels: int = 3) -> torch.Tensor:
    coarse = torch.rand(batch, channels, 6, 6, generator=torch.Generator().manual_seed(height))
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return smooth.clamp(0, 1).movedim(1, -1).contiguous()


def restore(host, parts, image, **settings):
    from realisr.nodes.vosr import RestorationCFGSampler

    defaults = {
        "resize": {"resize": "scale factor", "scale": 2.0},
        "tiling": {"tiling": "custom", "tile_size": 64, "tile_overlap": 16},
        "steps": 1,
        "restoration_scale": 1.0,
        "seed": 42,
        "color_alignment": "none",
        "weak_strength": 0.15,
        "guidance_start": 0.0,
        "guidance_end": 1.0,
        "posterior": "mean",
        "vae_tile_size": 0,
    }
    (result,) = host.run(RestorationCFGSampler, model=parts[0], vae=parts[1], image=image, **(defaults | settings))
    return result


@pytest.fixture
def faithful(monkeypatch):
    """Stands in for the sampler, whose random weights restore nothing: the LQ latent, with a fault where it is told.

    Everything around it (conditioning, tiles, decoding, colours, check, rerun, blending) is the node's own.
    """
    from realisr.host.vosr import restore as method

    calls: list[dict[str, Any]] = []
    faults: list[Any] = []

    def sample(model, conditioning, options, live=None):
        latent = conditioning.full[0][1]["concat_latent_image"].clone()
        calls.append({"seed": options.seed, "scale": options.guidance.scale, "shape": tuple(latent.shape[-2:])})
        return faults.pop(0)(latent) if faults else latent

    monkeypatch.setattr(method, "sample", sample)
    return calls, faults


def black_tile(latent):
    """The middle of tile 5 (from 0) of 3 x 5, which lies at latent rows 24 to 56 and columns 0 to 32."""
    latent[..., 30:50, :20] = -2.0
    return latent


def nan_tile(latent):
    latent[..., 30:50, :20] = torch.nan
    return latent


def test_off_is_what_it_was(host, parts):
    image = picture(80, 120)
    assert torch.equal(restore(host, parts, image), restore(host, parts, image, tile_check="off"))


def test_good_tiles_are_left_alone(host, parts, faithful):
    calls, _ = faithful
    image = picture(80, 120)
    expected = restore(host, parts, image)
    calls.clear()
    assert torch.equal(restore(host, parts, image, tile_check=AGAIN), expected)
    assert len(calls) == 1


@pytest.mark.parametrize("fault", [black_tile, nan_tile])
def test_only_the_bad_tile_is_restored_again(host, parts, faithful, fault):
    calls, faults = faithful
    image = picture(80, 120)
    good = restore(host, parts, image)
    faults.append(black_tile)
    broken = restore(host, parts, image)
    calls.clear()
    faults.append(fault)
    mended = restore(host, parts, image, tile_check=AGAIN)
    # Tile 5 lies at rows 48 to 112 and columns 0 to 64; the ring around it is 16 pixels wide.
    window = (slice(None), slice(32, 128), slice(0, 80))
    outside = torch.ones_like(good, dtype=torch.bool)
    outside[window] = False
    assert torch.equal(mended[outside], broken[outside])
    assert (broken - good).abs().max() > 0.2
    torch.testing.assert_close(mended, good, rtol=0, atol=1e-5)
    assert [call["seed"] for call in calls] == [42, 43]
    assert calls[1]["shape"] == (48, 40), "the tile and the ring around it, in latent cells"


def test_rounds_end(host, parts, faithful):
    """What is never good is tried as often as asked, each time with another seed, and less creatively if asked."""
    calls, faults = faithful

    def dark(latent):
        return torch.full_like(latent, -2.0)

    faults += [black_tile] + [dark] * 100
    restore(host, parts, picture(80, 120), tile_check=LESS, check_rounds=3)
    assert len(faults) > 1 and calls[0]["seed"] == 42
    assert {(call["seed"], call["scale"]) for call in calls} == {(42, 1.0), (43, 1.5), (44, 2.0), (45, 2.0)}


def test_what_stays_nan_is_an_error(host, parts, faithful):
    _, faults = faithful
    faults += [nan_tile] + [lambda latent: torch.full_like(latent, torch.nan)] * 100
    with pytest.raises(ValueError, match="in some tiles and in every round"):
        restore(host, parts, picture(80, 120), tile_check=AGAIN)


def test_without_the_check_nan_is_an_error_as_before(host, parts, faithful):
    _, faults = faithful
    faults.append(nan_tile)
    with pytest.raises(ValueError, match="not numbers"):
        restore(host, parts, picture(80, 120))


def test_a_random_network_is_found_out(host, parts):
    """The real sampler: every tile of what random weights make is bad, and the run ends all the same."""
    image = picture(80, 120)
    once, thrice = restore(host, parts, image), restore(host, parts, image, tile_check=AGAIN, check_rounds=1)
    assert once.shape == thrice.shape
    assert thrice.isfinite().all()
    assert not torch.equal(once, thrice)


@pytest.mark.parametrize(("height", "width"), [(33, 65), (80, 49)])
def test_any_size_batch_and_alpha(host, parts, faithful, height, width):
    _, faults = faithful
    images = picture(height, width, batch=2, channels=4)
    faults.append(lambda latent: torch.full_like(latent, 2.0))
    result = restore(host, parts, images, tile_check=AGAIN)
    assert result.shape == (2, 2 * height, 2 * width, 4)
    torch.testing.assert_close(result, restore(host, parts, images), rtol=0, atol=1e-5)


def test_an_odd_choice_is_named(host, parts):
    with pytest.raises(ValueError, match=r"tile_check is 'maybe'. It takes 'off' or"):
        restore(host, parts, picture(20, 20), tile_check="maybe")
