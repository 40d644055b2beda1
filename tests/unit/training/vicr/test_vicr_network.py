"""VICR's network in training: what it computes, what of it is trained, and that it starts from FLUX Fill as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from harness import straight_line_flux as flux
from harness import straight_line_sampling as sampling
from harness.vicr import diffusers_fill
from harness.vicr_training import EMBEDDING, HIDDEN, POOLED, TEXT, tiny_autoencoder, tiny_flux_fill
from harness.vosr import relative_error

CPU, META = torch.device("cpu"), torch.device("meta")
GUIDANCE = 30.0
PAPER = 127_716_865
LORA_OF_PAPER = 115_912_704
FLUX_FILL = 11_902_391_360


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return tiny_flux_fill()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("flux") / "fill.safetensors"
    save_file(weights, path)
    return path


def make(file: Path, width: int | None = HIDDEN, rank: int = 4, device: torch.device = CPU) -> Any:
    from realisr.models.vicr.bridge import BridgeConfig
    from realisr.training.flux.transformer import load_transformer
    from realisr.training.vicr.network import build_network

    bridge = None if width is None else BridgeConfig(EMBEDDING, 24, width)
    return build_network(load_transformer(file, device, torch.float32), rank, bridge, GUIDANCE, seed=1)


def stir(network: Any, deviation: float = 0.05) -> Any:
    """Trained parameters away from their start."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in network.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=generator) * deviation)
    return network


def draw(batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "x": (batch, 16, 4, 8),
        "masked": (batch, 16, 4, 8),
        "text": (batch, 5, TEXT),
        "pooled": (batch, POOLED),
        "embeds": (batch, EMBEDDING),
    }
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**inputs, "time": torch.tensor([0.3, 0.85])[:batch]}


def run(network: Any, inputs: dict[str, Tensor]) -> Tensor:
    from realisr.training.vicr.network import VELOCITY

    with torch.no_grad():
        return network(VELOCITY, inputs, None)["velocity"]


def lora_of(network: Any) -> dict[str, Tensor]:
    from realisr.training.vicr.export import split_files
    from realisr.training.vicr.network import trained

    return split_files({name: value.detach() for name, value in trained(network).items()})[0]


@pytest.mark.parametrize("width", [HIDDEN, POOLED, None])
def test_velocity_is_that_of_the_straight_line(file, weights, width):
    network, inputs = stir(make(file, width)), draw()
    plain = flux.Prompt(inputs["text"], inputs["pooled"], GUIDANCE)
    prompt = plain
    if width is not None:
        prompt = flux.bridged(plain, flux.context_vector(network.bridge.state_dict(), inputs["embeds"]))
    raw = sampling.raw_space(inputs["masked"].double())
    seen = torch.cat([inputs["x"].double(), sampling.fill_channels(raw)], dim=1)
    expected = flux.velocity(flux.with_lora(weights, lora_of(network)), seen, inputs["time"], prompt)
    assert relative_error(run(network, inputs), expected) < 1e-5
    assert relative_error(flux.velocity(weights, seen, inputs["time"], plain), expected) > 0.02, "what is trained shows"


def test_untrained_it_is_flux_fill(file):
    """Bit for bit: LoRA and bridge give zero."""
    with_bridge, without, inputs = make(file), make(file, None), draw()
    assert torch.equal(run(with_bridge, inputs), run(without, inputs))
    with_bridge.transformer.disable_adapters()
    assert torch.equal(run(with_bridge, inputs), run(without, inputs))


def test_everything_trained_gets_a_gradient_after_one_step(file):
    """At the very start a zero matrix hides what comes before it; one step later nothing does."""
    from realisr.training.vicr.network import trained

    network, inputs = make(file), draw()
    batch = {**inputs, "clean": inputs["x"], "noise": inputs["x"].flip(0)}
    parameters = trained(network)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        network("train", batch, None)["loss"].backward()
        optimizer.step()
    unmoved = [name for name, value in parameters.items() if torch.equal(value, before[name])]
    assert not unmoved


def test_frozen_weights_have_no_gradient(file):
    from realisr.training.vicr.network import trained

    names = set(trained(make(file)))
    assert all(".lora_" in name or name.startswith("bridge.") for name in names)
    assert {"bridge.scale", "transformer.x_embedder.lora_A.default.weight"} <= names


def test_sampling_is_that_of_flux_fill_pipeline(file, weights, tmp_path):
    """diffusers' own preparation of canvas and mask, packing, schedule and steps; the diptych's halves side by side."""
    from realisr.models.vicr.diptych import empty_target, target_mask
    from realisr.training.flux.autoencoder import load_autoencoder
    from realisr.training.vicr.network import VELOCITY
    from realisr.training.vicr.restore import sample

    save_file(tiny_autoencoder(), tmp_path / "ae.safetensors")
    autoencoder = load_autoencoder(tmp_path / "ae.safetensors", CPU, torch.float32)
    network, inputs = make(file, None), draw()
    lq = torch.rand(2, 3, 32, 32)
    canvas, mask = empty_target(lq, "side by side"), target_mask(32, 32, "side by side", 2)
    pipeline = diffusers_fill(weights, autoencoder.network)
    with torch.no_grad():
        expected = pipeline(
            image=canvas,
            mask_image=mask[:, None],
            height=32,
            width=64,
            prompt_embeds=inputs["text"],
            pooled_prompt_embeds=inputs["pooled"],
            num_inference_steps=4,
            guidance_scale=GUIDANCE,
            latents=rearrange(inputs["x"], "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2),
            output_type="latent",
        ).images
        masked = autoencoder.encode(canvas * 2 - 1)
        conditions = {"masked": masked, "text": inputs["text"], "pooled": inputs["pooled"]}
        result = sample(
            lambda x, time: network(VELOCITY, {**conditions, "x": x, "time": time}, None)["velocity"], inputs["x"], 4
        )
    assert relative_error(rearrange(result, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2), expected) < 1e-4


def header_of_flux_fill(path: Path) -> Path:
    """A file with the real flux1-fill-dev's names and shapes and no bytes behind them (sparse, 24 GB by its length)."""
    import json

    from harness.checkpoints import flux_shapes

    header, end = {}, 0
    for name, shape in flux_shapes(384, 24, 19, 38, 4096, 768, True):
        size = 2 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
    return path


def test_real_size_on_meta_from_the_header_alone(tmp_path):
    """The paper's parameter count; nothing but the header can be read, for nothing else is there."""
    from realisr.models.vicr.bridge import BridgeConfig
    from realisr.training.flux.transformer import load_transformer
    from realisr.training.vicr.network import build_network, trained

    path = header_of_flux_fill(tmp_path / "flux1-fill-dev.safetensors")
    transformer = load_transformer(path, META, torch.bfloat16)
    network = build_network(transformer, 32, BridgeConfig(), GUIDANCE, seed=0)
    parameters = trained(network)
    assert all(value.device.type == "meta" for value in network.parameters())
    assert sum(value.numel() for name, value in parameters.items() if ".lora_" in name) == LORA_OF_PAPER
    assert sum(value.numel() for value in parameters.values()) == PAPER
    assert {value.dtype for value in parameters.values()} == {torch.float32}
    frozen = [value for value in network.parameters() if not value.requires_grad]
    assert sum(value.numel() for value in frozen) == FLUX_FILL


@pytest.mark.parametrize("inputs", [64, 128])
def test_another_flux_is_refused(tmp_path, inputs):
    from harness.checkpoints import fill, flux_shapes

    save_file(fill(flux_shapes(inputs, 2, 1, 1, TEXT, POOLED, True), 0), tmp_path / "dev.safetensors")
    with pytest.raises(ValueError, match=rf"reads {inputs} features; FLUX.1 Fill reads 384"):
        make(tmp_path / "dev.safetensors")


def test_a_bridge_of_another_width_is_refused(file):
    with pytest.raises(ValueError, match=r"the bridge is 100 wide; it must be 256.* or 64"):
        make(file, 100)
