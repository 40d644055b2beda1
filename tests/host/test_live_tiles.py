"""What a node shows while it samples in tiles: pictures, a line, one bar; and that it changes nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from harness import checkpoints, dreamsr, tiled
from harness.tiled import light_vae, node_lists, text
from harness.vosr import TinyVOSR

SIZE = (14, 20)
"""Of the latent, in cells: 6 tiles of 8 x 8, two cells shared."""


@dataclass
class Shown:
    """Everything a run showed: (share of the bar, picture or None) and lines."""

    moves: list[tuple[float, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def values(self) -> list[float]:
        return [value for value, _ in self.moves]

    @property
    def pictures(self) -> list[torch.Tensor]:
        """`[h, w, 3]` in 0..1 each."""
        found = [preview[1] for _, preview in self.moves if preview is not None]
        return [torch.from_numpy(np.array(picture)).float() / 255 for picture in found]

    def require_rising(self) -> None:
        assert self.values and self.values[0] > 0 and self.values[-1] == 1.0
        assert all(before <= after + 1e-9 for before, after in pairwise(self.values)), self.values


@pytest.fixture
def shown(host, monkeypatch):
    """What is shown from now on, with no limit on how often, and nothing that goes by the clock."""
    import comfy.utils

    from realisr.host import live_tiles

    seen = Shown()
    monkeypatch.setattr(live_tiles, "FRAME_SECONDS", 0.0)
    monkeypatch.setattr(live_tiles, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(live_tiles, "SHARE", 1.0)
    monkeypatch.setattr(live_tiles, "KNOWN_SECONDS", float("inf"))
    monkeypatch.setattr(live_tiles, "show_on_node", seen.lines.append)
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0)
    hook = lambda value, total, preview=None, **_: seen.moves.append((value / total, preview))  # noqa: E731
    comfy.utils.set_progress_bar_global_hook(hook)
    yield seen
    assert comfy.utils.PROGRESS_BAR_HOOK is hook, "a stage must give the host's hook back"
    comfy.utils.set_progress_bar_global_hook(None)


@pytest.fixture
def previews_of_the_host(host):
    import latent_preview

    latent_preview.set_preview_method("latent2rgb")
    yield
    latent_preview.set_preview_method("default")


# --- any sampler ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flux_model(host):
    return dreamsr.load_flux(host, "live_flux.safetensors", checkpoints.flux(**tiled.FLUX))


def multidiffusion(host, model, preview: bool, sampler: str = "euler", steps: int = 3, together: int = 1, **options):
    """Latents of a KSampler on a model that works in tiles of 64 pixels, 16 shared."""
    import nodes

    from realisr.nodes.tiles import TiledMultiDiffusion, TileGridNode

    latent = {"samples": torch.zeros(1, 16, *SIZE)}
    grid = host.run(TileGridNode, size_of=latent, tile_size=64, overlap=16, align=2)[0]
    inputs = {"weights": "uniform", "tiles_per_batch": together, "true_positions": False, "patch_prompt_reader": "auto"}
    patched = host.run(TiledMultiDiffusion, **node_lists(model=model, tile_grid=grid, preview=preview, **inputs))[0]
    settings = {"seed": 1, "steps": steps, "cfg": 1.0, "sampler_name": sampler, "scheduler": "simple", "denoise": 1.0}
    return host.run(
        nodes.KSampler,
        model=patched,
        positive=text(0),
        negative=text(1),
        latent_image=latent,
        **settings | options,
    )[0]["samples"]


def outlined(picture: torch.Tensor) -> torch.Tensor:
    """Where the outline's colour is, `[h, w]`."""
    from realisr.host.live_tiles import OUTLINE

    return ((picture - torch.tensor(OUTLINE) / 255).abs() < 0.02).all(-1)


def test_tiles_are_seen_under_any_sampler(host, flux_model, shown):
    from comfy.cli_args import args

    multidiffusion(host, flux_model, preview=True)
    shown.require_rising()
    assert len(shown.pictures) == 3 * (6 + 1), "before each tile, and after each step"
    size = (round(args.preview_size * 14 / 20), args.preview_size)
    assert {tuple(picture.shape[:2]) for picture in shown.pictures} == {size}
    # The second tile lies at columns 6 to 14 of 20 cells.
    marked = outlined(shown.pictures[1]).nonzero()
    cell = args.preview_size / 20
    assert marked[:, 1].min() == pytest.approx(6 * cell, abs=3) and marked[:, 1].max() == pytest.approx(
        14 * cell, abs=3
    )
    before, after = shown.pictures[0], shown.pictures[1]
    inside = (slice(8, round(5 * cell)), slice(8, round(5 * cell)))
    assert not torch.equal(before[inside], after[inside]), "the first tile is pasted in when it is done"
    assert not outlined(shown.pictures[6]).any(), "after a step no tile is current"
    assert shown.lines[0] == "tile 1 of 6 · step 1 of 3" and "tile 6 of 6 · step 3 of 3" in shown.lines
    assert shown.lines[-1].startswith("6 tiles · 3 steps · done in ")


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2s_ancestral", "dpmpp_2m"])
def test_the_bar_never_falls_whatever_the_sampler(host, flux_model, shown, sampler):
    multidiffusion(host, flux_model, preview=True, sampler=sampler, steps=4)
    shown.require_rising()


def test_one_picture_wins_with_the_hosts_own_previews(host, flux_model, shown, previews_of_the_host):
    """The host's, at the end of a step, is of the same place and the same look: ours without an outline."""
    multidiffusion(host, flux_model, preview=True)
    shown.require_rising()
    pictures = shown.pictures
    small = [index for index, picture in enumerate(pictures) if tuple(picture.shape[:2]) == SIZE]
    assert len(small) == 3, "one of the host for each step"
    for index in small:
        ours = F.interpolate(pictures[index - 1].movedim(-1, 0)[None], SIZE, mode="area")[0].movedim(0, -1)
        assert (ours - pictures[index]).abs().mean() < 0.06


@pytest.mark.parametrize("together", [1, 4])
def test_the_result_is_the_same_to_the_bit(host, flux_model, shown, together):
    seen = multidiffusion(host, flux_model, preview=True, together=together)
    assert any("tiles 1 to 4 of 6" in line for line in shown.lines) == (together == 4)
    shown.moves.clear()
    shown.lines.clear()
    unseen = multidiffusion(host, flux_model, preview=False, together=together)
    assert torch.equal(seen, unseen)
    assert not shown.pictures and not shown.lines
    shown.require_rising()


@pytest.mark.parametrize("argument", [["--preview-method", "none"], ["--preview-method=none"]])
def test_no_pictures_where_previews_are_switched_off(host, flux_model, shown, monkeypatch, argument):
    """By hand: the host's default is none as well, and is no such choice."""
    import sys

    monkeypatch.setattr(sys, "argv", ["main.py", *argument])
    multidiffusion(host, flux_model, preview=True)
    assert not shown.pictures and "tile 2 of 6 · step 1 of 3" in shown.lines


def test_a_cancel_ends_within_a_tile(host, flux_model, shown, monkeypatch):
    import comfy.model_management

    from realisr.host.live_tiles import LiveTiles

    begun = []

    def cancel_at_the_third(self, tiles, progress):
        begun.append(tiles[0][0])
        if len(begun) == 3:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(LiveTiles, "running", cancel_at_the_third)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        multidiffusion(host, flux_model, preview=True)
    assert begun[:3] == [0, 1, 2] and len(begun) <= 4


# --- whole methods ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vosr(host) -> dict[str, Any]:
    from realisr.host.vosr.vae import PIXEL_UNSHUFFLE, load_vosr_vae

    tiny = TinyVOSR.create(host, "live_pixel", seed=5, latent_channels=12, context_width=0)
    args = {"ae_type": "pixel_unshuffle", "ae_downscale": 2, "ae_scale": 2.0}
    (tiny.folder / "args.json").write_text(json.dumps(args), encoding="utf-8")
    return {"model": tiny.load(), "vae": load_vosr_vae(PIXEL_UNSHUFFLE)}


def photo(height: int = 28, width: int = 40, batch: int = 1) -> torch.Tensor:
    coarse = torch.rand(batch, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1).contiguous()


def restored(host, parts: dict[str, Any], image: torch.Tensor, **changes: Any) -> torch.Tensor:
    from realisr.nodes.vosr import RestorationCFGSampler

    settings = {
        "resize": {"resize": "scale factor", "scale": 2.0},
        "steps": 2,
        "restoration_scale": 0.5,
        "seed": 42,
        "color_alignment": "adain",
        "tiling": {"tiling": "auto"},
        "weak_strength": 0.15,
        "guidance_start": 0.0,
        "guidance_end": 1.0,
        "posterior": "mean",
        "vae_tile_size": 0,
    }
    return host.run(RestorationCFGSampler, image=image, **parts, **settings | changes)[0]


def test_vosr_starts_from_the_enlarged_photo(host, vosr, shown):
    image = photo()
    seen = restored(host, vosr, image)
    shown.require_rising()
    first = shown.pictures[0]
    size = tuple(first.shape[:2])
    large = F.interpolate(image.movedim(-1, 1), size, mode="bicubic").clamp(0, 1)[0].movedim(0, -1)
    assert outlined(first).any() and (first - large).abs().median() < 0.02
    assert shown.lines[0] == "reading the picture" and shown.lines[-1] == "decoding the picture"
    assert "tiles 1 to 6 of 6 · step 1 of 2" in shown.lines, "tiles this small are run together"
    shown.moves.clear()
    assert torch.equal(restored(host, vosr, image, preview=False), seen)
    assert not shown.pictures
    shown.require_rising()


def test_the_last_picture_is_the_result(host, vosr, shown):
    """Pixel latents look as the picture does: what is seen at the end is what comes out, before colours."""
    seen = restored(host, vosr, photo(), color_alignment="none")
    last, result = (
        F.interpolate(picture.movedim(-1, 0)[None], (14, 20), mode="area") for picture in (shown.pictures[-1], seen[0])
    )
    assert (last - result).abs().mean() < 0.02


@pytest.mark.parametrize("changes", [{"tiling": {"tiling": "off"}}, {"tile_check": "rerun with another seed"}])
def test_batches_single_tiles_and_reruns_share_one_bar(host, vosr, shown, changes):
    restored(host, vosr, photo(batch=2), **changes)
    shown.require_rising()
    assert any(line.startswith("image 2 of 2 · ") for line in shown.lines)


@pytest.mark.parametrize("tile", [0, 64])
@torch.inference_mode()
def test_the_bar_moves_while_the_vae_works(host, shown, tile):
    """Before anything is sampled; and no hook stays on its layers."""
    from realisr.host.images import decode_latent, encode_image
    from realisr.host.progress import NodeBar

    vae, bar = light_vae(host), NodeBar(2)
    with bar.stage():
        latent = encode_image(vae, torch.rand(1, 128, 192, 3), tile)
    assert len({value for value in shown.values if value < 0.5}) > 5
    with bar.stage():
        decode_latent(vae, latent, tile)
    assert len({value for value in shown.values if value > 0.5}) > 5
    shown.require_rising()
    assert not any(module._forward_hooks for module in vae.first_stage_model.modules())


# --- cost -------------------------------------------------------------------------------------------------------------


class Slow:
    """A previewer that takes so many seconds of a clock that only it and the tiles move."""

    def __init__(self, seconds: float):
        self.seconds, self.now, self.drawn = seconds, 0.0, 0

    def decode_latent_to_preview(self, latent):
        from PIL import Image

        self.now += self.seconds
        self.drawn += 1
        return Image.new("RGB", (8, 8))


@pytest.mark.parametrize("seconds", [0.01, 0.3, 5.0])
def test_drawing_takes_an_eighth_of_the_time_at_most(host, seconds):
    """All but the last picture, whose share comes after it."""
    from realisr.host.live_tiles import LiveTiles
    from realisr.host.progress import TileProgress
    from realisr.models.tiles.grid import TileGrid

    slow, grid = Slow(seconds), TileGrid(8, 100, 8, 10, 0)
    live, progress = LiveTiles(slow, clock=lambda: slow.now), TileProgress(10, 40)
    live.lay(tiled_panes(), (8, 100))
    live.begin(torch.zeros(1, 4, 8, 100))
    spent = []
    for _ in range(40):
        progress.start_evaluation(None)
        for tile in enumerate(grid.boxes):
            live.running([tile], progress)
            spent.append((live.drawing, slow.now))
            slow.now += 0.25
            live.finished([tile], [torch.zeros(4, 8, 10)])
            progress.advance(1)
    before_last = [drawing for drawing, _ in spent if drawing < live.drawing]
    assert slow.drawn > 1 and live.drawing > 0
    total = slow.now - (live.drawing - (before_last[-1] if before_last else 0.0))
    assert (before_last[-1] if before_last else 0.0) <= total / 8


def tiled_panes():
    from realisr.models.tiles.grid import ONE_PANE

    return ONE_PANE


def test_time_left(host):
    from realisr.host.live_tiles import LiveTiles, minutes
    from realisr.host.progress import TileProgress
    from realisr.models.tiles.grid import Box

    now = [0.0]
    live, progress = LiveTiles(None, "image 1 of 2", later=1.0, clock=lambda: now[0]), TileProgress(4, 2)
    progress.start_evaluation(None)
    live.running([(0, Box(0, 0, 8, 8))], progress)
    assert live.line(progress, 0.0) == "image 1 of 2 · tile 1 of 4 · step 1 of 2"
    progress.advance(2)
    now[0] = 10.0
    # A quarter of this image took 10 s: 30 s are left of it, and 40 s of the next.
    assert live.line(progress, 10.0) == "image 1 of 2 · tile 1 of 4 · step 1 of 2 · 1:10 left"
    assert [minutes(seconds) for seconds in (0.4, 80, 3599.6, 7380)] == ["0:00", "1:20", "1:00:00", "2:03:00"]
