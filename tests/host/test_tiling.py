"""Tiles merged at every evaluation, on a real MODEL and the host's own samplers.

The network is replaced, through the host's hook for it, by functions whose tiled result is known in advance.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from harness import vicr
from harness.checkpoints import flux
from harness.host import InProcessHost

SIGMAS = torch.tensor([1.0, 0.6, 0.3, 0.0])


@pytest.fixture(scope="module")
def fill(host: InProcessHost):
    """A FLUX Fill so small that it only lends its class."""
    weights = flux(fill_model=True, heads=1, double_blocks=1, single_blocks=1, context_width=8, pooled_width=8)
    return vicr.load_fill(host, "tiling_fill", weights)


def tiling(size=(12, 14), tile=(8, 8), overlap=(4, 4), **options):
    from realisr.host.tiling.sampling import Tiling
    from realisr.models.tiles.grid import TileGrid

    return Tiling(TileGrid.fitted(size, tile, overlap, 2), **options)


class Network:
    """Takes the place of a MODEL's network: denoised = rule(x, conditions), and counts its calls."""

    def __init__(self, rule):
        self.rule = rule
        self.batches: list[int] = []

    def __call__(self, apply_model, args):
        self.batches.append(args["input"].shape[0])
        return self.rule(args["input"], args["c"])

    def on(self, model):
        model = model.clone()
        model.set_model_unet_function_wrapper(self)
        return model


def text(value: float, tokens: int = 3, **options):
    """A CONDITIONING whose tokens hold one number."""
    return [[torch.full((1, tokens, 8), value), {"pooled_output": torch.full((1, 8), value), **options}]]


def in_tiles(conditioning, own):
    """A CONDITIONING of one entry whose tiles speak for themselves."""
    from realisr.host.tiling.conditions import with_tile_options

    ((tokens, options),) = conditioning
    return [[tokens, with_tile_options(options, own)]]


def run(model, x, positive=None, negative=None, cfg=1.0, sampler="euler", sigmas=SIGMAS):
    """Raw latent sampled from noise `x`."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or text(1.0), negative or text(0.0))
    guider.set_cfg(cfg)
    with torch.inference_mode():
        return guider.sample(
            x, torch.zeros_like(x), comfy.samplers.sampler_object(sampler), sigmas, disable_pbar=True, seed=1
        )


def noise(size=(12, 14), batch=1) -> torch.Tensor:
    return torch.randn(batch, 16, *size)


def scaled(x, c):
    """Pointwise: what it predicts in a cell depends on that cell alone."""
    return x * 0.5 + c["c_crossattn"].mean(dim=(1, 2))[:, None, None, None]


SHAPES = [
    ((12, 14), (8, 8), (4, 4)),
    ((10, 22), (8, 12), (2, 6)),
    ((8, 30), (16, 10), (0, 0)),
    ((18, 8), (6, 8), (5, 0)),
]


@pytest.mark.parametrize("weights", ["uniform", "gaussian", "linear"])
@pytest.mark.parametrize(("size", "tile", "overlap"), SHAPES)
@pytest.mark.parametrize("per_forward", [1, 3])
def test_a_linear_model_gives_the_weighted_average(fill, weights, size, tile, overlap, per_forward):
    """Every tile predicts a number of its own, for each image of the batch; summed up cell by cell in double."""
    from realisr.host.tiling.conditions import TileOptions

    tiled = tiling(size, tile, overlap, weights=weights, per_forward=per_forward)
    grid = tiled.grid
    own = TileOptions(grid, [{"cross_attn": torch.full((1, 3, 8), float(t + 1) ** 2)} for t in range(len(grid))])
    model = tiled.apply(Network(scaled).on(fill))
    x = noise(size, batch=2)
    out = vicr.model_space(run(model, x, in_tiles(text(0.0), own), sigmas=torch.tensor([1.0, 0.0])))

    def profile(n: int) -> list[float]:
        bell = (torch.arange(n).double() - (n - 1) / 2) / (0.3 * n)
        tent = [float(min(i + 1, n - i)) for i in range(n)]
        return {"uniform": [1.0] * n, "gaussian": torch.exp(-(bell**2) / 2).tolist(), "linear": tent}[weights]

    total, mass = torch.zeros(2, *size, dtype=torch.float64)
    for number, box in enumerate(grid.boxes):
        rows, columns = profile(box.height), profile(box.width)
        for i, j in itertools.product(range(box.height), range(box.width)):
            weight = rows[i] * columns[j]
            total[box.top + i, box.left + j] += weight * (number + 1) ** 2
            mass[box.top + i, box.left + j] += weight
    expected = x.double() * 0.5 + total / mass
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "sampler",
    ["euler", "heun", "dpm_2", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "uni_pc", "res_multistep", "ddim"],
)
def test_pointwise_models_are_not_changed_by_tiles(fill, sampler):
    plain = Network(scaled).on(fill)
    x = noise(batch=2)
    both = [
        run(model, x, text(0.3), text(-0.2), cfg=2.5, sampler=sampler)
        for model in (plain, tiling(per_forward=2, weights="gaussian").apply(plain))
    ]
    torch.testing.assert_close(both[1], both[0], rtol=1e-4, atol=1e-4)


def test_whatever_has_the_canvas_shape_is_cropped(fill):
    """Masked image and mask of an inpainting model, reference latents; other conditions stay whole."""

    def rule(x, c):
        references = [reference.mean(dim=1, keepdim=True) for reference in c["ref_latents"] if reference.shape[-1] > 6]
        small = c["ref_latents"][1].mean(dim=(1, 2, 3), keepdim=True)
        return x * 0.5 + c["c_concat"].mean(dim=1, keepdim=True) + references[0] + small

    size = (12, 14)
    positive = text(
        0.0,
        concat_latent_image=torch.randn(2, 16, *size),
        concat_mask=torch.rand(1, 1, 8 * size[0], 8 * size[1]),
        reference_latents=[torch.randn(2, 16, *size), torch.randn(1, 16, 4, 6)],
    )
    plain, x = Network(rule).on(fill), noise(size, batch=2)
    both = [run(model, x, positive) for model in (plain, tiling(per_forward=4).apply(plain))]
    torch.testing.assert_close(both[1], both[0], rtol=1e-5, atol=1e-5)


def test_masks_areas_and_time_ranges_of_prompts_hold(fill):
    """Prompts limited to a part of the canvas meet in the same places with tiles and without."""
    size = (12, 14)
    left = torch.zeros(1, *size)
    left[..., :7] = 1.0
    positive = (
        text(1.0, mask=left, mask_strength=0.8)
        + text(-2.0, area=(6, 8, 2, 4), mask=torch.ones(1, *size), strength=0.5)
        + text(0.4, start_percent=0.5, mask=torch.rand(1, *size))
        + text(0.1)
    )
    plain, x = Network(scaled).on(fill), noise(size, batch=2)
    both = [run(model, x, positive) for model in (plain, tiling(per_forward=4).apply(plain))]
    assert not torch.allclose(both[0], run(plain, x, text(0.1)), atol=0.1)
    torch.testing.assert_close(both[1], both[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per_forward", [1, 3])
def test_images_of_a_batch_keep_their_own_prompts(fill, per_forward):
    """A conditioning with one text for each image, as prompt schedules make."""
    positive = text(0.0)
    positive[0][0] = torch.arange(2.0)[:, None, None].expand(2, 3, 8)
    plain, x = Network(scaled).on(fill), noise(batch=2)
    both = [run(model, x, positive) for model in (plain, tiling(per_forward=per_forward).apply(plain))]
    torch.testing.assert_close(both[1], both[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("per_forward", "calls"), [(1, 6), (4, 2), (6, 1), (50, 1)])
def test_number_of_calls_is_what_the_grid_implies(fill, per_forward, calls):
    network = Network(scaled)
    tiled = tiling(per_forward=per_forward)
    assert len(tiled.grid) == 6
    run(tiled.apply(network.on(fill)), noise(batch=2), cfg=3.0)
    # Both conditions of a tile share a forward.
    assert len(network.batches) == 3 * calls
    assert sum(network.batches) == 3 * 6 * 2 * 2


def test_texts_of_different_length_run_in_forwards_of_their_own(fill):
    from realisr.host.tiling.conditions import TileOptions

    network, tiled = Network(scaled), tiling(per_forward=6)
    lengths = [3, 3, 5, 5, 5, 3]
    own = TileOptions(tiled.grid, [{"cross_attn": torch.ones(1, length, 8)} for length in lengths])
    run(tiled.apply(network.on(fill)), noise(), in_tiles(text(0.0), own), sigmas=torch.tensor([1.0, 0.0]))
    assert network.batches == [2, 3, 1]


def test_tiles_run_together_as_far_as_memory_goes(fill, monkeypatch):
    import comfy.model_management

    free = [0.0]
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: free[0])
    one = fill.model.memory_required([1, 16, 8, 8]) * 1.5
    seen = {}
    for room in (0.5, 2.5, 1000):
        free[0] = one * room
        network = Network(scaled)
        run(tiling().apply(network.on(fill)), noise(), sigmas=torch.tensor([1.0, 0.0]))
        seen[room] = max(network.batches)
    assert seen == {0.5: 1, 2.5: 2, 1000: 6}


def test_too_little_memory_halves_the_tiles_run_together(fill):
    asked = []

    def rule(x, c):
        asked.append(x.shape[0])
        if x.shape[0] > 2:
            raise torch.OutOfMemoryError("no room")
        return scaled(x, c)

    plain, x = Network(scaled).on(fill), noise()
    out = run(tiling(per_forward=6).apply(Network(rule).on(fill)), x)
    torch.testing.assert_close(out, run(plain, x), rtol=1e-4, atol=1e-4)
    # 6 fails, 3 fails, and from then on it is not tried again.
    assert asked == [6, 3] + [1] * (3 * 6)


def test_a_tile_that_does_not_fit_alone_says_so_and_the_host_knows_it_for_what_it_is(fill):
    import comfy.model_management

    def rule(x, c):
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match=r"single tile .*64x64 pixels.*smaller tile size") as caught:
        run(tiling(per_forward=2).apply(Network(rule).on(fill)), noise())
    assert comfy.model_management.is_oom(caught.value)


def test_other_failures_are_not_taken_for_want_of_memory(fill):
    def rule(x, c):
        raise RuntimeError("size mismatch")

    network = Network(rule)
    with pytest.raises(RuntimeError, match="size mismatch"):
        run(tiling(per_forward=6).apply(network.on(fill)), noise())
    assert len(network.batches) == 1


@pytest.mark.parametrize(("per_forward", "tiles"), [(0, 1), (3, 3), (50, 6)])
def test_memory_asked_of_the_host_is_one_forwards_not_the_canvas(fill, monkeypatch, per_forward, tiles):
    shapes = []
    original = fill.model.memory_required
    monkeypatch.setattr(fill.model, "memory_required", lambda s, **kw: (shapes.append(list(s)), original(s, **kw))[1])
    model = tiling(per_forward=per_forward).apply(Network(scaled).on(fill))
    run(model, noise(batch=2), sigmas=torch.tensor([1.0, 0.0]))
    # The host asks for two conditions together, and for one at least.
    assert shapes[:2] == [[2 * 2 * tiles, 16, 8, 8], [2 * tiles, 16, 8, 8]]


def test_cancel_stops_between_tiles(fill):
    import comfy.model_management

    network = Network(scaled)

    def rule(x, c):
        if len(network.batches) == 2:
            comfy.model_management.interrupt_current_processing()
        return scaled(x, c)

    network.rule = rule
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(tiling(per_forward=1).apply(network.on(fill)), noise())
    assert len(network.batches) == 2


def test_progress_counts_tiles(fill, monkeypatch):
    import comfy.utils

    from realisr.host.progress import BEGUN, FINE

    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: shown.append((value, total)))
    # The host shows no more than so many values a second.
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0)
    run(tiling(per_forward=2).apply(Network(scaled).on(fill)), noise())
    assert shown == [(BEGUN, FINE), *((value, 18) for value in range(2, 19, 2))]


def test_one_tile_is_the_untiled_model_to_the_bit(fill):
    x = noise((8, 8), batch=2)
    positive = text(0.4, concat_latent_image=torch.randn(1, 16, 8, 8))
    model = tiling((8, 8), (16, 16), (4, 4), weights="gaussian").apply(fill)
    with_tiles, without = (run(m, x, positive, text(0.1), cfg=2.0) for m in (model, fill))
    assert torch.equal(with_tiles, without)


def test_a_model_is_tiled_once(fill):
    with pytest.raises(ValueError, match="already works in tiles"):
        tiling().apply(tiling().apply(fill))


def test_another_latent_is_refused(fill):
    with pytest.raises(ValueError, match=r"laid its tiles over a latent of 12x14 cells .*1, 16, 12, 16"):
        run(tiling().apply(fill), noise((12, 16)))


def test_conditions_of_another_grid_are_refused(fill):
    from realisr.host.tiling.conditions import TileOptions

    other = tiling(tile=(6, 6)).grid
    own = TileOptions(other, [{}] * len(other))
    with pytest.raises(ValueError, match=r"made for 20 tiles of 6x6 .*, the model for 6 tiles of 8x8"):
        run(tiling().apply(fill), noise(), in_tiles(text(0.0), own))


def test_options_for_another_number_of_tiles_are_refused(fill):
    from realisr.host.tiling.conditions import TileOptions

    with pytest.raises(ValueError, match="options for 5 tiles, the grid has 6"):
        TileOptions(tiling().grid, [{}] * 5)


class CountedExtraConds:
    """Counts how often a MODEL is asked for conditions, through the host's hook for methods of a model."""

    def __init__(self):
        self.asked = 0

    def on(self, model):
        model = model.clone()
        original = model.get_model_object("extra_conds")

        def extra_conds(**kwargs):
            self.asked += 1
            return original(**kwargs)

        model.add_object_patch("extra_conds", extra_conds)
        return model


def own_texts(grid, value=0.0):
    from realisr.host.tiling.conditions import TileOptions

    return TileOptions(grid, [{"cross_attn": torch.full((1, 3, 8), value + tile)} for tile in range(len(grid))])


@pytest.mark.parametrize(("share", "times"), [(1 / 4, 1), (0.0, 3)])
def test_tiles_conditions_are_made_once_a_run_as_far_as_memory_goes(fill, monkeypatch, share, times):
    from realisr.host.tiling import sampling

    monkeypatch.setattr(sampling, "KEPT_SHARE", share)
    counted, tiled = CountedExtraConds(), tiling(per_forward=2)
    model = tiled.apply(counted.on(Network(scaled).on(fill)))
    run(model, noise(), in_tiles(text(0.0), own_texts(tiled.grid)))
    # Two for the canvas, positive and negative; then one for each of 6 tiles, in three steps.
    assert counted.asked == 2 + 6 * times


def test_conditions_of_an_entry_that_changes_are_made_anew(fill):
    """As by a wrapper that exchanges the text of tiles half-way."""
    from comfy.patcher_extension import WrappersMP

    from realisr.host.tiling.conditions import MODEL_CONDS, TILE_OPTIONS

    tiled = tiling(per_forward=6)
    first, second = own_texts(tiled.grid), own_texts(tiled.grid, 50.0)

    def exchange(at):
        calls = []

        def predict(executor, x, timestep, model_options, seed):
            calls.append(timestep)
            guider = executor.class_obj
            if len(calls) == at:
                for entry in guider.conds["positive"]:
                    entry[MODEL_CONDS][TILE_OPTIONS] = second
            return executor(x, timestep, model_options, seed)

        model = tiled.apply(Network(scaled).on(fill))
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "exchange", predict)
        return run(model, x, in_tiles(text(0.0), first))

    x = noise()
    never, late, always = exchange(0), exchange(2), exchange(1)
    assert not torch.allclose(late, never) and not torch.allclose(late, always)
    assert torch.equal(always, run(tiled.apply(Network(scaled).on(fill)), x, in_tiles(text(0.0), second)))


def test_prompts_of_tiles_are_refused_by_a_model_without(fill):
    """They would be passed over, which nobody would notice."""
    with pytest.raises(ValueError, match=r"was made for tiles\. Sample it with the model output of the node"):
        run(fill, noise(), in_tiles(text(0.0), own_texts(tiling().grid)))


def test_kept_conditions_make_room_for_a_tile_that_would_not_fit_beside_them(fill):
    calls = []

    def rule(x, c):
        calls.append(x.shape[0])
        if len(calls) == 3:  # when those of two tiles are kept
            raise torch.OutOfMemoryError("no room")
        return scaled(x, c)

    x, tiled = noise(), tiling(per_forward=1)
    conditioning = in_tiles(text(0.0), own_texts(tiled.grid))
    found = run(tiled.apply(Network(rule).on(fill)), x, conditioning)
    assert torch.equal(found, run(tiled.apply(Network(scaled).on(fill)), x, conditioning))
    assert len(calls) == 3 * 6 + 1
