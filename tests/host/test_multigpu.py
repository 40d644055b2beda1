"""How devices share tiles: how many each, and what becomes of an error, a cancel and too little memory in one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from harness import dreamsr, tiled
from harness.checkpoints import flux
from harness.host import InProcessHost
from harness.two_devices import FIRST, SECOND, Calls, split, two_devices
from harness.vosr import Scene, relative_error, run_guider

WAIT = 120
"""Seconds, for a thread that never comes."""

GRID = (16, 52)
"""Cells, four tiles of 16 x 16."""


def scene_of(tiny: Any, tiles: bool = True) -> Scene:
    from realisr.models.tiles.grid import TileGrid

    return Scene.random(tiny.config, GRID, grid=TileGrid(*GRID, 16, 16, 4, align=2) if tiles else None)


@pytest.fixture
def two(host) -> Iterator[None]:
    with two_devices():
        yield


@pytest.fixture
def one_tile_a_forward(host, monkeypatch) -> None:
    """So that one device and two run the very same batches, and may be compared bit for bit."""
    from realisr.host.tiling import sampling

    monkeypatch.setattr(sampling, "CELLS_PER_FORWARD", 1)


def when_both_run(act: Callable[[], None]) -> Callable[[int], None]:
    """Calls `act` in one of the first two calls of networks, once both devices are in one."""
    both = threading.Barrier(2, timeout=WAIT)

    def called(number: int) -> None:
        if number <= 2:
            both.wait()
        if number == 2:
            act()

    return called


def no_thread_left() -> bool:
    return not any("_worker_loop" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("tiles", "most", "devices", "together", "rounds"),
    [
        (4, 4, 2, 2, [[2, 2]]),
        (9, 4, 2, 3, [[3, 3], [2, 1]]),
        (5, 1, 2, 1, [[1, 1], [1, 1], [1]]),
        (7, 8, 3, 3, [[3, 3, 1]]),
        (2, 8, 3, 1, [[1, 1]]),
    ],
)
def test_devices_have_equally_much_to_do(host, tiles, most, devices, together, rounds):
    from realisr.host.tiling.devices import Devices

    shared: Any = Devices(dict.fromkeys(torch.device("cpu", index) for index in range(devices)), None)
    assert shared.together(tiles, most) == together
    each = together * devices
    batches = [range(first, min(first + each, tiles)) for first in range(0, tiles, each)]
    assert [[len(part) for part in shared.parts(batch)] for batch in batches] == rounds
    assert [tile for batch in batches for part in shared.parts(batch) for tile in part] == list(range(tiles))


def test_tiles_that_would_fit_one_forward_are_shared(one_step, two):
    scene, alone, calls = scene_of(one_step), Calls(), Calls()
    expected = run_guider(alone.watch(one_step.load()), scene, 1.0, 1)
    assert alone.items == [4]
    result = run_guider(calls.watch(split(one_step.load())), scene, 1.0, 1)
    assert calls.items == [2, 2] and len(calls.items_per_copy) == 2
    assert relative_error(result, expected) < 1e-5


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "euler_ancestral"])
def test_under_other_samplers(multi_step, two, one_tile_a_forward, sampler):
    scene, calls = scene_of(multi_step), Calls()
    expected = run_guider(multi_step.load(), scene, sampler=sampler)
    assert torch.equal(run_guider(calls.watch(split(multi_step.load())), scene, sampler=sampler), expected)
    first, second = calls.items_per_copy
    assert first == second
    assert no_thread_left()


def test_without_tiles_the_host_shares_the_two_conditions_as_it_does(multi_step, two):
    scene, calls = scene_of(multi_step, tiles=False), Calls()
    expected = run_guider(multi_step.load(), scene, 0.5)
    assert relative_error(run_guider(calls.watch(split(multi_step.load())), scene, 0.5), expected) < 1e-5
    assert calls.items_per_copy == [4, 4]


def test_an_error_of_one_device_ends_the_run(multi_step, two, one_tile_a_forward):
    """By itself, however long the other one takes; the next run is as if nothing had been."""
    scene, calls = scene_of(multi_step), Calls()
    expected = run_guider(multi_step.load(), scene)

    def broken() -> None:
        raise RuntimeError("this device is broken")

    calls.act = when_both_run(broken)
    model = split(calls.watch(multi_step.load()))
    with pytest.raises(RuntimeError, match="this device is broken"):
        run_guider(model, scene)
    assert len(calls.items) == 2 and no_thread_left()
    calls.act = lambda number: None
    assert torch.equal(run_guider(model, scene), expected)


def test_a_cancel_ends_the_run(multi_step, two, one_tile_a_forward):
    import comfy.model_management as management

    scene, calls = scene_of(multi_step), Calls()
    expected = run_guider(multi_step.load(), scene)
    calls.act = when_both_run(management.interrupt_current_processing)
    model = split(calls.watch(multi_step.load()))
    with pytest.raises(management.InterruptProcessingException):
        run_guider(model, scene)
    # The device that does not hear of it first may begin one more tile.
    assert len(calls.items) <= 3 and no_thread_left()
    calls.act = lambda number: None
    assert torch.equal(run_guider(model, scene), expected)


def test_too_little_memory_on_one_device_makes_its_forwards_smaller(multi_step, two):
    scene, calls = scene_of(multi_step), Calls()
    expected = run_guider(multi_step.load(), scene, 1.0, 1)

    def full() -> None:
        raise torch.OutOfMemoryError("no room")

    calls.act = when_both_run(full)
    result = run_guider(split(calls.watch(multi_step.load())), scene, 1.0, 1)
    assert sorted(calls.items) == [1, 1, 2, 2]
    assert relative_error(result, expected) < 1e-5


@pytest.mark.parametrize("gpus", [1, 2])
def test_one_tile_without_room_is_one_error(multi_step, two, one_tile_a_forward, gpus):
    calls = Calls()

    def full(number: int) -> None:
        raise torch.OutOfMemoryError("no room")

    calls.act = full
    with pytest.raises(torch.OutOfMemoryError, match=r"a single tile .* does not fit into memory"):
        run_guider(split(calls.watch(multi_step.load()), gpus), scene_of(multi_step))
    assert no_thread_left()


def test_results_of_a_failed_round_are_not_taken_for_the_next_ones(host):
    pytest.importorskip("comfy.multigpu")
    from comfy.multigpu import MultiGPUThreadPool

    from realisr.host.tiling.devices import Devices

    def first_fails(device: torch.device, part: list[int]) -> list[int]:
        if device == FIRST:
            raise ValueError("the first device")
        return part

    pool = MultiGPUThreadPool([FIRST, SECOND])
    shared: Any = Devices({FIRST: None, SECOND: None}, pool)
    with pytest.raises(ValueError, match="the first device"):
        shared.run(first_fails, [1, 2])
    assert shared.run(lambda device, part: [10 * item for item in part], [3, 4]) == [30, 40]
    with torch.inference_mode():
        modes = shared.run(lambda device, part: [torch.is_inference_mode_enabled()], [1, 2])
    assert modes == [True, True]
    pool.shutdown()


class OneDevice:
    """Conditions that make the host load models or change weights between forwards."""

    @staticmethod
    def encoded_hint(host: InProcessHost, positive: list[Any]) -> list[Any]:
        """A ControlNet whose hint a VAE encodes."""
        import nodes

        hint = torch.rand(1, 64, 160, 3, generator=torch.Generator().manual_seed(3))
        return host.run(
            nodes.ControlNetApplyAdvanced,
            positive=positive,
            negative=positive,
            control_net=tiled.flux_controlnet(latent=True),
            image=hint,
            strength=0.8,
            start_percent=0.0,
            end_percent=1.0,
            vae=tiled.light_vae(host),
        )[0]

    @staticmethod
    def hooked_lora(host: InProcessHost, positive: list[Any]) -> list[Any]:
        import comfy.hooks
        from comfy_extras.nodes_hooks import CreateHookLoraModelOnly

        weights = {"lora_A.weight": tiled.randn(4, 128, seed=1), "lora_B.weight": tiled.randn(384, 4, seed=2)}
        layer = "diffusion_model.double_blocks.0.img_attn.qkv"
        lora = host.save_model(
            "loras", "multigpu_hook.safetensors", {f"{layer}.{name}": value for name, value in weights.items()}
        )
        (hooks,) = host.run(CreateHookLoraModelOnly, lora_name=lora, strength_model=1.0)
        return comfy.hooks.set_hooks_for_conditioning(positive, hooks)


@pytest.mark.parametrize("given", [OneDevice.encoded_hint, OneDevice.hooked_lora])
def test_conditions_that_need_one_device_have_one(host, two, given):
    from realisr.models.tiles.layout import TileLayout
    from realisr.nodes.tiles import TiledMultiDiffusion

    model = dreamsr.load_flux(host, "multigpu_one_device.safetensors", flux(**tiled.FLUX))
    plain = tiled.text(5)
    grid = TileLayout.fitted(64, 160, 64, 32, 2)
    widgets = {"weights": "gaussian", "tiles_per_batch": 1, "true_positions": False, "patch_prompt_reader": "auto"}

    def run(model: Any, positive: list[Any]) -> torch.Tensor:
        lists = tiled.node_lists(model=model, tile_grid=grid, **widgets)
        patched, _ = host.run(TiledMultiDiffusion, **lists)
        return dreamsr.sample(patched, positive, dreamsr.Scene.random((8, 20)), negative=positive, steps=2)

    positive = given(host, plain)
    expected, calls = run(model, positive), Calls()
    assert relative_error(run(model, plain), expected) > 1e-3, "the condition has a say"
    assert torch.equal(run(split(calls.watch(model)), positive), expected)
    assert calls.items_per_copy == [4 * 2]
