"""Two devices on the tiles of one image, behind ComfyUI's MultiGPU CFG Split, under every node that runs a network."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import checkpoints, dreamsr, tiled, vicr
from harness.checkpoints import flux
from harness.host import InProcessHost
from harness.two_devices import EMPTY, Calls, split, two_devices
from harness.vosr import Scene, TinyVOSR, run_guider

TEXT, POOLED = 32, 768
SIZE = (8, 20)

Change = Callable[[Any], Any]
"""Of a MODEL."""


def same(model: Any) -> Any:
    return model


@pytest.fixture(autouse=True)
def _one_tile_a_forward(host, monkeypatch) -> None:
    """So that one device and two run the very same batches, and may be compared bit for bit."""
    from realisr.host.tiling import sampling

    monkeypatch.setattr(sampling, "CELLS_PER_FORWARD", 1)


@pytest.fixture
def two(host) -> Iterator[None]:
    with two_devices():
        yield


def layout(size: tuple[int, int] = SIZE):
    """Four tiles of 64 pixels."""
    from realisr.models.tiles.layout import TileLayout

    return TileLayout.fitted(size[0] * 8, size[1] * 8, 64, 32, 2)


def tile_model(model: Any, positive: list[Any], **widgets: Any) -> list[Any]:
    from realisr.nodes.tiles import TiledMultiDiffusion

    given = {"weights": "gaussian", "tiles_per_batch": 1, "true_positions": False, "patch_prompt_reader": "auto"}
    lists = tiled.node_lists(model=model, tile_grid=layout(), positive=positive, **given | widgets)
    return list(InProcessHost.run(TiledMultiDiffusion, **lists))


def picture(height: int, width: int) -> Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(2))


class Method:
    """A way to restore. model: what its loader gives. tiles: how many a run has, a forward each."""

    tiles = 4
    steps = 2

    def __init__(self, host: InProcessHost):
        self.host = host
        self.model = self.load()

    def load(self) -> Any:
        raise NotImplementedError

    def run(self, model: Any, last: Change = same) -> Tensor:
        """The result on a MODEL. last: put on what goes into the sampler."""
        raise NotImplementedError


class VOSR(Method):
    def __init__(self, host: InProcessHost, scale: float, **sizes: Any):
        from realisr.models.tiles.grid import TileGrid

        self.scale, self.steps = scale, 1 if sizes else 2
        self.tiny = TinyVOSR.create(host, f"multigpu_{len(sizes)}", **sizes)
        grid = TileGrid(16, 52, 16, 16, 4, align=2)
        self.scene = Scene.random(self.tiny.config, (16, 52), grid=grid)
        super().__init__(host)

    def load(self) -> Any:
        return self.tiny.load()

    def run(self, model: Any, last: Change = same) -> Tensor:
        return run_guider(last(model), self.scene, self.scale, self.steps)


class Flux(Method):
    """Guidance-distilled FLUX under Tiled MultiDiffusion: one condition."""

    widgets: dict[str, Any] = {}

    def load(self) -> Any:
        weights = flux(1, context_width=TEXT, pooled_width=POOLED, double_blocks=2, single_blocks=1)
        return dreamsr.load_flux(self.host, "multigpu_flux.safetensors", weights)

    def scene(self) -> dreamsr.Scene:
        return dreamsr.Scene.random(SIZE)

    def conditions(self, model: Any) -> tuple[Any, list[Any]]:
        return model, self.scene().positive

    def run(self, model: Any, last: Change = same) -> Tensor:
        patched, positive = self.conditions(model)
        patched, positive = tile_model(patched, positive, **self.widgets)
        return dreamsr.sample(last(patched), positive, self.scene(), steps=self.steps)


class TruePositions(Flux):
    widgets = {"true_positions": True}


class PatchPrompts(Flux):
    """Texts of different lengths cannot share a forward."""

    widgets = {
        "patch_prompts": [tiled.text(seed, tokens=3 + seed, width=TEXT, pooled=POOLED) for seed in range(4)],
    }


class MMControlNet(Flux):
    def __init__(self, host: InProcessHost):
        super().__init__(host)
        self.control = dreamsr.load_control(host, "multigpu.safetensors", dreamsr.control_weights())

    def conditions(self, model: Any) -> tuple[Any, list[Any]]:
        return dreamsr.apply_control(model, self.control, self.scene())[:2]


class ControlNet(Flux):
    """The host's own, of pixels."""

    def __init__(self, host: InProcessHost):
        super().__init__(host)
        self.control = tiled.flux_controlnet()

    def load(self) -> Any:
        return dreamsr.load_flux(self.host, "multigpu_small_flux.safetensors", flux(**tiled.FLUX))

    def conditions(self, model: Any) -> tuple[Any, list[Any]]:
        import nodes

        hint = picture(SIZE[0] * 8, SIZE[1] * 8)
        (positive,) = self.host.run(
            nodes.ControlNetApply,
            conditioning=tiled.text(5),
            control_net=self.control,
            image=hint,
            strength=0.8,
        )
        return model, positive


def acceleration_lora(host: InProcessHost) -> str:
    def shapes() -> checkpoints.Shapes:
        yield "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", (4, 256)
        yield "transformer.transformer_blocks.0.attn.to_q.lora_B.weight", (256, 4)

    return host.save_model("loras", "multigpu.safetensors", checkpoints.fill(shapes(), 9))


class LoRAStep(Flux):
    steps = 1

    def run(self, model: Any, last: Change = same) -> Tensor:
        from comfy_extras.nodes_custom_sampler import BasicGuider

        from realisr.nodes.dreamsr import AccelerationLoRAStep

        lora = acceleration_lora(self.host)
        patched, positive = tile_model(model, self.scene().positive)
        (guider,) = self.host.run(BasicGuider, model=last(patched), conditioning=positive)
        latent, _ = self.host.run(
            AccelerationLoRAStep,
            guider=guider,
            latent=self.scene().latent,
            lora_name=lora,
            strength=1.0,
            texture_start=0.8,
            texture_steps=2,
            removal_time=1.0,
            shift=1.0,
        )
        return latent["samples"]


class DreamSRRestore(MMControlNet):
    """Removal of degradation and texture, each with its own view of the picture."""

    steps = 1 + 2

    def run(self, model: Any, last: Change = same) -> Tensor:
        from realisr.host.dreamsr.lora import AccelerationLoRA
        from realisr.host.dreamsr.restore import DreamSR, restore_images, tiles_over

        lora = AccelerationLoRA.load(acceleration_lora(self.host), 1.0)
        method = DreamSR(last(model), self.scene().positive, self.control, lora=lora, texture_steps=2)
        size, image = (SIZE[1] * 8, SIZE[0] * 8), picture(SIZE[0] * 2, SIZE[1] * 2)
        with torch.inference_mode():
            return restore_images(method, tiled.light_vae(self.host), image, size, tiles_over(*size, 64, 32))


class VOSRRestore(Method):
    """Of VOSR nano's kind."""

    def load(self) -> Any:
        tiny = TinyVOSR.create(self.host, "multigpu_pixel", seed=5, latent_channels=12, context_width=0)
        pixels = {"ae_type": "pixel_unshuffle", "ae_downscale": 2, "ae_scale": 2.0}
        (tiny.folder / "args.json").write_text(json.dumps(pixels), "utf-8")
        return tiny.load()

    def run(self, model: Any, last: Change = same) -> Tensor:
        from realisr.host.vosr.conditioning import SquareTiles
        from realisr.host.vosr.restore import VOSRRestoreOptions, restore
        from realisr.host.vosr.vae import PIXEL_UNSHUFFLE, load_vosr_vae

        options = VOSRRestoreOptions(104, 32, steps=2, tiles=SquareTiles(32, 8))
        with torch.inference_mode():
            return restore(last(model), load_vosr_vae(PIXEL_UNSHUFFLE), None, picture(16, 52), options)


class VICR(Method):
    """Diptych tiles with the bridge's vector."""

    tiles = 3

    def load(self) -> Any:
        weights = flux(3, fill_model=True, double_blocks=1, single_blocks=1, context_width=TEXT, pooled_width=POOLED)
        return vicr.load_fill(self.host, "multigpu_fill", weights)

    def run(self, model: Any, last: Change = same) -> Tensor:
        from realisr.models.vicr.diptych import build_diptych
        from realisr.nodes.vicr_tiles import DiptychTiles

        built = build_diptych(picture(64, 128), 128, 64, "side by side")
        bridge = vicr.load_bridge(self.host, "multigpu_bridge", checkpoints.vision_context_bridge(1))
        wire = [[tiled.randn(1, 5, TEXT, seed=3), {"pooled_output": tiled.randn(1, POOLED, seed=4), "guidance": 30.0}]]
        bridged, wire = vicr.bridged(model, wire, bridge, tiled.randn(1, 768, seed=5))
        inputs = {"model": bridged, "positive": wire, "vae": tiled.light_vae(self.host)}
        widgets = {"tile_size": 64, "tile_overlap": 32, "weights": "gaussian", "tiles_per_batch": 1}
        lists = tiled.node_lists(canvas=built.canvas, diptych=built.diptych, **inputs, **widgets)
        patched, positive, _, latent, *_ = self.host.run(DiptychTiles, **lists)
        noise = tiled.randn(*latent["samples"].shape, seed=6)
        scene = SimpleNamespace(noise=noise, empty=latent, wire=positive)
        return vicr.sample(last(patched), scene, torch.tensor([1.0, 0.6, 0.0]))


METHODS: dict[str, Callable[[InProcessHost], Method]] = {
    "VOSR one-step": lambda host: VOSR(host, 1.0, has_end_time=True),
    "VOSR guided": lambda host: VOSR(host, 0.5),
    "FLUX": Flux,
    "FLUX, true positions": TruePositions,
    "patch prompts": PatchPrompts,
    "MM-ControlNet": MMControlNet,
    "ControlNet": ControlNet,
    "LoRA step": LoRAStep,
    "DreamSR Restore": DreamSRRestore,
    "VOSR Restore": VOSRRestore,
    "VICR": VICR,
}


@pytest.fixture(scope="module", params=METHODS)
def method(request, host) -> Method:
    return METHODS[request.param](host)


@pytest.fixture(scope="module")
def expected(method) -> Tensor:
    """On one device."""
    from realisr.host.tiling import sampling

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "CELLS_PER_FORWARD", 1)
        return method.run(method.load())


def test_both_devices_do_their_half_and_give_the_same(method, expected, two):
    """Also the second time, when the host finds its copies loaded."""
    calls = Calls()
    model = split(calls.watch(method.model))
    forwards = method.tiles * method.steps
    for _ in range(2):
        calls.networks.clear(), calls.items.clear()
        assert torch.equal(method.run(model), expected)
        branches = sum(calls.items) // forwards
        first, second = calls.items_per_copy
        assert len(calls.items) == forwards and first - second <= branches * method.steps


def test_the_hosts_node_may_come_last(method, expected, two):
    calls = Calls()
    assert torch.equal(method.run(calls.watch(method.model), split), expected)
    assert len(calls.items_per_copy) == 2


def test_nothing_of_one_device_reaches_the_other(method):
    """Torch refuses to calculate with tensors of both."""
    if isinstance(method, ControlNet):
        pytest.skip("the host's own ControlNets read the time as a number")
    calls = Calls()
    with two_devices(EMPTY):
        method.run(calls.watch(split(method.load())))
    assert len(calls.items_per_copy) == 2


def test_one_device_is_as_before(method, expected, two):
    calls = Calls()
    assert torch.equal(method.run(split(calls.watch(method.model), gpus=1)), expected)
    assert len(calls.items_per_copy) == 1 and calls.threads == {threading.get_ident()}


def test_each_device_has_its_own_copy_of_a_controlnet(host, two):
    method, seen = ControlNet(host), []
    # The host copies the network with its hooks.
    method.control.control_model.register_forward_hook(lambda network, *_: seen.append(id(network)))
    method.run(split(method.model))
    assert list(Counter(seen).values()) == [method.tiles * method.steps // 2] * 2


def test_the_lora_is_off_on_both_devices_after_its_step(host, two):
    """At once: what holds a network until the host loads it anew must not see it."""
    step = LoRAStep(host)
    model = split(step.model)
    (copy,) = model.get_additional_models_with_key("multigpu")
    step.run(model)
    for patcher in (model, copy):
        assert not any("forward" in vars(layer) for layer in patcher.model.diffusion_model.modules())
    plain = Flux(host)
    assert torch.equal(plain.run(model), plain.run(plain.model))


def test_the_control_network_is_read_once_for_a_device(host, two):
    """However often Apply MM-ControlNet is in the graph; DreamSR Restore applies it twice to an image."""
    method = MMControlNet(host)
    model, copies = split(method.model), []
    for _ in range(2):
        patched, _ = method.conditions(model)
        (copy,) = patched.get_additional_models_with_key("multigpu")
        copies += copy.get_additional_models_with_key("realisr_mm_controlnet")
    first, second = (copy.model for copy in copies)
    assert first is second and first is not method.control.network


def test_a_control_network_without_a_file_is_refused(host, two):
    from realisr.host.dreamsr.control.initialise import initialise_mm_control

    method = MMControlNet(host)
    method.control = initialise_mm_control(method.model, layers=1)
    for last in (same, split):
        with pytest.raises(ValueError, match="Save it with Save MM-ControlNet"):
            method.run(split(method.model) if last is same else method.model, last)
