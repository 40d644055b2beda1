"""A run as the host manages it: memory estimate, progress, interrupt, end times of one-step students."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import pytest
import torch

from harness.vosr import CountedCalls, Recorder, Scene, plain_run, relative_error, run_guider


def grid_of(height: int, width: int):
    from realisr.models.tiles.grid import TileGrid

    return TileGrid(height, width, 16, 16, 4)


@pytest.fixture
def canvas(multi_step) -> Scene:
    """Six tiles of 16 x 16."""
    return Scene.random(multi_step.config, (28, 40), grid=grid_of(28, 40))


@pytest.fixture
def tiles_of_two(monkeypatch) -> None:
    """At most two tiles a forward: tiny ones would otherwise all share one."""
    from realisr.host.tiling import sampling

    monkeypatch.setattr(sampling, "CELLS_PER_FORWARD", 2 * 16 * 16)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_tiled_run_equals_the_plain_loop(multi_step, canvas, scale, tiles_of_two):
    assert len(canvas.grid) == 6
    recorder = Recorder()
    result = run_guider(recorder.watch(multi_step.load()), canvas, scale, 3)
    assert relative_error(result, plain_run(multi_step, canvas, scale, 3)) < 1e-5
    branches = 1 if scale == 1.0 else 2
    assert recorder.batches == [2 * branches] * 9
    assert {forward.size for forward in recorder.forwards} == {(16, 16)}


def test_tiled_batch_equals_its_items(multi_step, tiles_of_two):
    from dataclasses import replace

    scene = Scene.random(multi_step.config, (16, 28), batch=2, grid=grid_of(16, 28))
    model = multi_step.load()
    together = run_guider(model, scene, steps=2)
    for item in (0, 1):
        part = slice(item, item + 1)
        alone = replace(scene, latent=scene.latent[part], features=scene.features[part], noise=scene.noise[part])
        assert relative_error(together[part], run_guider(model, alone, steps=2)) < 1e-5


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "euler_ancestral"])
def test_tiles_merge_under_other_samplers(multi_step, canvas, sampler):
    result = run_guider(multi_step.load(), canvas, steps=3, sampler=sampler)
    assert torch.isfinite(result).all() and result.std() > 0.1


def test_memory_is_asked_for_tiles_whatever_the_canvas(multi_step):
    from comfy.patcher_extension import WrappersMP

    asked = []

    def watch(executor, model, noise_shape, *args, **kwargs):
        asked.append(list(noise_shape))
        return executor(model, noise_shape, *args, **kwargs)

    model = multi_step.load()
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "watch", watch)
    for size in ((28, 28), (64, 64)):
        run_guider(model, Scene.random(multi_step.config, size, grid=grid_of(*size), tokens=1), 1.0, 1)
    run_guider(model, Scene.random(multi_step.config, (28, 28)), 1.0, 1)
    assert asked == [[1, 4, 16, 16], [1, 4, 16, 16], [1, 4, 28, 28]]


def test_branches_run_apart_when_memory_is_short(multi_step, canvas, monkeypatch, tiles_of_two):
    """The host then runs full and weak one after the other, to the same result."""
    import comfy.model_patcher

    recorder = Recorder()
    model = recorder.watch(multi_step.load())
    expected = run_guider(model, canvas, steps=2)
    assert set(recorder.batches) == {4}
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 1.0)
    recorder.forwards.clear()
    result, values = with_progress(lambda: run_guider(model, canvas, steps=2))
    assert set(recorder.batches) == {2}
    assert relative_error(result, expected) < 1e-5
    assert_rising(values)


@pytest.fixture(autouse=True)
def _unthrottled_progress(host, monkeypatch) -> None:
    """The host drops updates that come within a tenth of a second."""
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0)


def with_progress(run):
    """A run's result and the shares of it that the progress bar showed."""
    import comfy.utils

    seen = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, **_: seen.append(value / total))
    try:
        return run(), seen
    finally:
        comfy.utils.set_progress_bar_global_hook(None)


def assert_rising(values: list[float]) -> None:
    assert values and values[-1] == 1.0
    assert all(before <= after for before, after in pairwise(values)), values


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7)])
def test_progress_moves_tile_by_tile(multi_step, canvas, interval, tiles_of_two):
    """Also when a guidance interval makes the branches of a step change."""
    from realisr.models.vosr.sampling import RestorationGuidance

    model, guidance = multi_step.load(), RestorationGuidance(0.5, *interval)
    _, values = with_progress(lambda: run_guider(model, canvas, guidance=guidance, steps=5))
    assert len(values) == 16, "the start of the run, and 5 steps of 3 pairs of tiles"
    assert_rising(values)
    _, again = with_progress(lambda: run_guider(model, canvas, guidance=guidance, steps=5))
    assert again == values, "a second run starts from nothing"


def test_interrupt_ends_between_tiles_and_leaves_nothing(multi_step, canvas, tiles_of_two):
    import comfy.model_management
    import comfy.samplers

    from realisr.host.vosr.guider import RestorationGuider
    from realisr.models.vosr.sampling import RestorationGuidance, euler_times

    model = multi_step.load()
    expected = run_guider(model, canvas, steps=3)
    recorder = Recorder(raise_at=4)
    guider = RestorationGuider(recorder.watch(model), canvas.full, canvas.weak, RestorationGuidance(0.5))

    def sample(times):
        with torch.inference_mode():
            return guider.sample(
                canvas.noise.clone(),
                torch.zeros_like(canvas.noise),
                comfy.samplers.ksampler("euler"),
                times,
                disable_pbar=True,
                seed=1,
            )

    kept = []
    original = model.model.diffusion_model.encode_context

    def encode(z):
        context = original(z)
        kept.extend(weakref.ref(value) for value in context.values)
        return context

    model.model.diffusion_model.encode_context = encode
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(euler_times(3))
    finally:
        del model.model.diffusion_model.encode_context
    # The forward in which cancel came is the last.
    assert len(recorder.forwards) == 5
    gc.collect()
    assert kept and all(reference() is None for reference in kept), "the memo must not outlive the run"
    recorder.raise_at = None
    assert torch.equal(sample(euler_times(3)), expected)


def ends(recorder: Recorder) -> list[tuple[float, float]]:
    assert all(forward.end_time is not None for forward in recorder.forwards)
    return [(forward.time[0].item(), forward.end_time[0].item()) for forward in recorder.forwards]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_end_time_of_euler_is_the_next_time(one_step, steps):
    recorder, scene = Recorder(), Scene.random(one_step.config)
    result = run_guider(recorder.watch(one_step.load()), scene, 1.0, steps)
    times = torch.linspace(1, 0, steps + 1).tolist()
    assert ends(recorder) == list(pairwise(times))
    assert relative_error(result, plain_run(one_step, scene, 1.0, steps)) < 1e-5
    unlike = run_guider(one_step.load(), scene, 1.0, steps, times=torch.linspace(0.9, 0, steps + 1))
    assert relative_error(result, unlike) > 1e-3


def test_end_time_of_both_branches_and_all_tiles(one_step):
    recorder = Recorder()
    scene = Scene.random(one_step.config, (16, 28), batch=2, grid=grid_of(16, 28))
    result = run_guider(recorder.watch(one_step.load()), scene, 0.5, 2)
    for forward in recorder.forwards:
        assert forward.end_time.shape == forward.time.shape == (forward.batch,) == (8,)
        assert forward.end_time.unique().numel() == 1
    assert relative_error(result, plain_run(one_step, scene, 0.5, 2)) < 1e-5


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2m", "dpmpp_2s_ancestral", "lcm"])
def test_end_time_is_always_ahead(one_step, sampler):
    """Samplers that evaluate between two sigmas: r is the next sigma of the schedule below the time."""
    recorder, scene = Recorder(), Scene.random(one_step.config, (8, 8))
    run_guider(recorder.watch(one_step.load()), scene, 1.0, 4, sampler=sampler)
    schedule = torch.linspace(1, 0, 5)
    for time, end in ends(recorder):
        assert end == schedule[schedule < time - 1e-4].max().item()


def test_network_without_end_time_gets_none(multi_step):
    recorder = Recorder()
    run_guider(recorder.watch(multi_step.load()), Scene.random(multi_step.config), steps=2)
    assert all(forward.end_time is None for forward in recorder.forwards)


def test_network_without_cross_attention(host):
    """VOSR nano's kind: no vision features, both branches still in one forward, tiled and not."""
    from harness.vosr import TinyVOSR

    plain = TinyVOSR.create(host, "tiny_blind", seed=4, context_width=0)
    recorder = Recorder()
    model = recorder.watch(plain.load())
    for scene in (Scene.random(plain.config), Scene.random(plain.config, (16, 28), grid=grid_of(16, 28))):
        with CountedCalls(model.model.diffusion_model, "encode_context") as calls:
            result = run_guider(model, scene, 0.5, 3)
        assert calls.count == 0
        assert relative_error(result, plain_run(plain, scene, 0.5, 3)) < 1e-5
    assert recorder.batches == [2] * 3 + [4] * 3
