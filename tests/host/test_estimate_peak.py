"""The estimate's memory against what tensors come to in the run itself, stage by stage, for every method.

Weights are left out on both sides: in networks as small as these they would hide the rest, or be nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

TOLERANCE = 0.2


class Peaks:
    """Bytes of tensors alive at once while a stage's code runs, beyond those that were there before it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        from realisr.host.cost import Meter

        self.monkeypatch = monkeypatch
        self.meter = Meter("cpu")
        self.found: dict[str, int] = {}

    def watch(self, stage: str, owner: Any, name: str, moved: Callable[..., int] = lambda *_, **__: 0) -> None:
        """Measure a stage while `owner.name` runs. moved: bytes of arguments that a GPU would have copies of."""
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            before = self.meter.live - moved(*args, **kwargs)
            self.meter.reset()
            out = original(*args, **kwargs)
            self.found[stage] = max(self.found.get(stage, 0), self.meter.peak - before)
            return out

        self.monkeypatch.setattr(owner, name, watched)

    def watch_sampling(self) -> None:
        import comfy.samplers

        def moved(_guider: Any, noise: Tensor, latent: Tensor, *_: Any, **__: Any) -> int:
            return noise.nbytes + latent.nbytes

        self.watch("sampling", comfy.samplers.CFGGuider, "inner_sample", moved)

    def watch_network(self, stage: str, network: nn.Module, name: str) -> None:
        self.watch(stage, network, name, lambda pixels, *_, **__: pixels.nbytes)

    @contextmanager
    def measured(self) -> Iterator[None]:
        with self.meter:
            yield

    def require(self, run: Any, *stages: str) -> None:
        """That so much was estimated. run: a RunEstimate."""
        estimated = {stage.name: stage.peak for stage in run.stages}
        assert set(stages) <= set(self.found)
        off = {name: estimated[name] / self.found[name] - 1 for name in stages}
        assert all(abs(each) <= TOLERANCE for each in off.values()), (off, self.found)


@pytest.fixture
def peaks(host, monkeypatch) -> Peaks:
    return Peaks(monkeypatch)


def fused(model: Any) -> Any:
    """A clone that attends as on a GPU: the host's way on a CPU saves memory that the estimate cannot know of."""
    from realisr.host.cost import FUSED

    model = model.clone()
    model.model_options["transformer_options"] = {**model.model_options.get("transformer_options", {}), **FUSED}
    return model


def fused_vae(vae: Any) -> Any:
    from realisr.host.forwards import attend_fused

    attend_fused(vae.first_stage_model)
    return vae


def described(build: Callable[[], Any]) -> Any:
    with torch.device("meta"), torch.no_grad():
        return build()


def vosr_parts(host, steps: int, mlp_hidden: int = 340):
    """(the MODEL, the VAE, DINOv2, the three as their files describe them): 128 wide, tiles of 256 pixels."""
    from harness.autoencoders import qwen_vae
    from harness.checkpoints import dinov2, save_vosr_folder, vosr_config
    from realisr.host.described import described_tensors
    from realisr.host.vosr.loader import load_vosr_model
    from realisr.host.vosr.vae import NO_DECODER, load_vosr_vae
    from realisr.host.vosr.vision import VisionSize, find_vision_encoder, load_vision_encoder

    sizes = {"hidden_size": 128, "num_heads": 2, "mlp_hidden": mlp_hidden, "latent_channels": 16, "context_width": 32}
    config = vosr_config(**sizes, context_hidden=384, train_grid=16, has_end_time=steps == 1)
    name = f"peak_{steps}_{mlp_hidden}"
    save_vosr_folder(host.models / "diffusion_models" / name, config)
    vae = host.save_model("vae", "peak_qwen.safetensors", qwen_vae(base_dim=16))
    vision = host.save_model("clip_vision", "peak_dinov2.safetensors", dinov2(width=32))
    loaded = load_vosr_model(name), load_vosr_vae(vae, NO_DECODER), load_vision_encoder(vision)
    seen = (
        described(lambda: load_vosr_model(name, disable_dynamic=True, read=described_tensors)),
        described(lambda: load_vosr_vae(vae, NO_DECODER, described_tensors)),
        VisionSize.of_file(find_vision_encoder(vision), described_tensors),
    )
    return loaded, seen


@pytest.mark.parametrize(("steps", "side", "vae_tile"), [(1, 384, 256), (2, 384, 0), (2, 256, 0)])
def test_vosr(host, peaks, steps, side, vae_tile):
    from realisr.host.vosr.conditioning import EncodeOptions
    from realisr.host.vosr.estimate import estimate_run
    from realisr.host.vosr.restore import VOSRRestoreOptions, restore

    (model, vae, vision), seen = vosr_parts(host, steps)
    encode = EncodeOptions(vae_tile=vae_tile)
    options = VOSRRestoreOptions(side, side, steps=steps, encode=encode, color="none", preview=False)
    run = estimate_run(*seen, options)
    peaks.watch_sampling()
    for stage, name in (("encoding", "encode"), ("decoding", "decode")):
        peaks.watch_network(stage, vae.first_stage_model, name)
    peaks.watch_network("vision features", vision.model, "get_intermediate_layers")
    with torch.inference_mode(), peaks.measured():
        restore(fused(model), fused_vae(vae), vision, torch.rand(1, side // 4, side // 4, 3), options)
    peaks.require(run, "sampling", "encoding", "decoding", "vision features")
    assert run.peak == max(stage.weights + stage.peak for stage in run.stages)
    assert all(0 < seconds < 1 for seconds in run.seconds.values())


def test_of_streamed_features_nothing_is_kept(host, peaks, monkeypatch):
    """In a network whose weights would let it keep what it makes of several tiles."""
    from harness.autoencoders import patch_vae
    from realisr.host.tiling import sampling
    from realisr.host.vosr import conditioning
    from realisr.host.vosr.conditioning import EncodeOptions
    from realisr.host.vosr.estimate import estimate_run
    from realisr.host.vosr.restore import VOSRRestoreOptions, restore

    monkeypatch.setattr(sampling, "CELLS_PER_FORWARD", 1)
    (model, _, vision), seen = vosr_parts(host, 1, mlp_hidden=8192)
    options = VOSRRestoreOptions(512, 512, steps=1, encode=EncodeOptions(vae_tile=256), color="none", preview=False)
    monkeypatch.setattr(conditioning, "HELD_TILES", 2)
    monkeypatch.setattr(conditioning, "STREAMED_TILES", 1)
    run = estimate_run(*seen, options)
    assert run.tiles == 9
    peaks.watch_sampling()
    with torch.inference_mode(), peaks.measured():
        restore(fused(model), patch_vae(), vision, torch.rand(1, 128, 128, 3), options)
    peaks.require(run, "sampling")


def test_dreamsr(host, peaks):
    import comfy.sd
    import nodes

    from harness import checkpoints
    from harness.dreamsr import control_weights, load_flux, save_control
    from realisr.host.described import described_tensors
    from realisr.host.dreamsr.control.loader import load_mm_control
    from realisr.host.dreamsr.estimate import estimate_run
    from realisr.host.dreamsr.restore import DreamSR, restore_images, tiles_over

    weights = checkpoints.flux(7, double_blocks=2, single_blocks=1, context_width=32, pooled_width=768)
    model = load_flux(host, "peak_flux.safetensors", weights)
    vae = host.run(nodes.VAELoader, vae_name=host.save_model("vae", "peak_taef1.safetensors", checkpoints.taesd()))[0]
    name = save_control(host, "peak_control.safetensors", control_weights())
    size, nowhere = (512, 384), torch.device("meta")
    grid = tiles_over(*size, 256, 64)
    seen = (
        described(lambda: comfy.sd.load_diffusion_model_state_dict(meta(weights), {}, disable_dynamic=True)),
        described(lambda: load_mm_control(name, "default", True, described_tensors, nowhere)),
        described(lambda: comfy.sd.VAE(sd=meta(checkpoints.taesd()))),
    )
    prompt = [[torch.randn(1, 256, 32), {"pooled_output": torch.randn(1, 768), "guidance": 3.5}]]
    method = DreamSR(fused(model), prompt, load_mm_control(name), texture_steps=2)
    run = estimate_run(*seen, size, grid, 2, removal=False)
    peaks.watch_sampling()
    for stage, way in (("encoding", "encode"), ("decoding", "decode")):
        peaks.watch_network(stage, vae.first_stage_model, way)
    with torch.inference_mode(), peaks.measured():
        restore_images(method, vae, torch.rand(1, 96, 128, 3), size, grid, preview=False)
    peaks.require(run, "sampling", "encoding", "decoding")


def meta(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.empty_like(value, device="meta") for name, value in weights.items()}


def test_vicr(host, peaks):
    import comfy.sd

    from harness import checkpoints, vicr
    from realisr.host.cost import Cost
    from realisr.host.estimate import RunEstimate, Stage
    from realisr.host.forwards import fill_sampling

    weights = checkpoints.flux(fill_model=True, double_blocks=2, single_blocks=1, context_width=32, pooled_width=768)
    model = fused(vicr.load_fill(host, "peak_fill", weights))
    seen = described(lambda: comfy.sd.load_diffusion_model_state_dict(meta(weights), {}, disable_dynamic=True))
    forward = fill_sampling(seen, 32, 64, text=5)
    assert isinstance(forward, Cost)
    peaks.watch_sampling()
    with peaks.measured():
        vicr.sample(model, vicr.Scene.random((32, 64)))
    peaks.require(RunEstimate("VICR", 256, 256, 1, 3, [Stage("sampling", 0, 0, 0, forward.peak)]), "sampling")


def test_pure(host, peaks, monkeypatch):
    import realisr.host.pure.restore as pure_restore
    from harness import pure
    from realisr.host.pure.estimate import Parts, estimate_run
    from realisr.host.pure.loader import load_ar_restorer
    from realisr.host.pure.restore import PURERestoreOptions, Tiles, restore
    from realisr.models.pure.options import GenerationOptions

    sizes = pure.Sizes(hidden=64, layers=8, heads=2, mlp=128)
    pure.save_pure_folder(host.models / "LLM" / "peak", pure.backbone(sizes=sizes), sizes.config())
    pure.save_released_files(host.models)
    restorer = load_ar_restorer("peak")
    options = PURERestoreOptions(64, 64, tiles=Tiles(64, 16), generation=GenerationOptions(max_text_tokens=64))
    parts = Parts(
        restorer.config, restorer.dtype, restorer.tokenizer, 0, 0, restorer.vq.config.base, restorer.vq.config
    )
    run = estimate_run(parts, options)
    peaks.watch("drawing", pure_restore, "generate")
    peaks.watch_network("image codes", restorer.vq, "encode")
    with torch.inference_mode(), peaks.measured():
        restore(restorer, torch.rand(1, 16, 16, 3), options)
    peaks.require(run, "drawing", "image codes")
