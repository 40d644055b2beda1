"""The MM-ControlNet without a host: its sizes and metadata, and diffusers' FLUX ControlNet on the same weights."""

from __future__ import annotations

import json

import pytest
import torch

from harness.dreamsr import Scene, control_config, control_weights
from harness.straight_line_flux import control_streams
from realisr.models.dreamsr.config import METADATA_KEY, Injection, MMControlNetConfig, spread_evenly
from realisr.models.dreamsr.mm_controlnet import MMControlNet, inject_image, inject_text


def network_of(weights: dict[str, torch.Tensor]) -> MMControlNet:
    network = MMControlNet(MMControlNetConfig.from_shapes({name: value.shape for name, value in weights.items()}))
    network.load_state_dict(weights, strict=True)
    return network


def arguments(scene: Scene) -> dict[str, torch.Tensor]:
    batch = scene.z_lq.shape[0]
    return {
        "latent": scene.z_lq,
        "timestep": torch.full((batch,), scene.t),
        "text": scene.local_text.expand(batch, -1, -1),
        "pooled": scene.local_pooled.expand(batch, -1),
        "guidance": torch.full((batch,), scene.guidance),
    }


@pytest.mark.parametrize(
    "sizes", [{}, {"layers": 3, "has_guidance": False}, {"mlp_hidden": 512, "context_hidden": 320}]
)
def test_sizes_are_read_off_the_tensors(sizes):
    config = control_config(**sizes)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in MMControlNet(config).state_dict().items()}
    assert MMControlNetConfig.from_shapes(shapes) == config


def test_default_sizes_are_half_of_flux():
    config = MMControlNetConfig()
    with torch.device("meta"):
        network = MMControlNet(config)
    assert config.num_heads == 24 and config.latent_channels == 16
    assert sum(value.numel() for value in network.transformer_blocks.parameters()) == 9 * 339_831_296


@torch.no_grad()
def test_image_branch_equals_diffusers_flux_controlnet():
    """Their network sums two embedded latents and drops the text stream; with one of the two zero it is this one."""
    from diffusers import FluxControlNetModel

    weights = control_weights()
    theirs = FluxControlNetModel(
        num_layers=2,
        num_single_layers=0,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=768,
        guidance_embeds=True,
    )
    kept = {name: value for name, value in weights.items() if not name.startswith("context_") or "embedder" in name}
    missing, unexpected = theirs.load_state_dict(kept, strict=False)
    assert not unexpected and set(missing) == {"controlnet_x_embedder.weight", "controlnet_x_embedder.bias"}
    scene = Scene.random((6, 8), batch=2)
    given = arguments(scene)
    packed = scene.z_lq.unflatten(2, (3, 2)).unflatten(4, (4, 2)).permute(0, 2, 4, 1, 3, 5).reshape(2, 12, 64)
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    positions = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(12, 3)
    out = theirs(
        hidden_states=packed,
        controlnet_cond=torch.zeros_like(packed),
        encoder_hidden_states=given["text"],
        pooled_projections=given["pooled"],
        timestep=given["timestep"],
        guidance=given["guidance"],
        img_ids=positions,
        txt_ids=torch.zeros(7, 3),
    )
    features = network_of(weights)(**given)
    assert len(features) == len(out.controlnet_block_samples) == 2
    for ours, reference in zip(features, out.controlnet_block_samples, strict=True):
        torch.testing.assert_close(ours.image, reference, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_streams_equal_the_straight_line():
    weights, scene = control_weights(seed=8), Scene.random((4, 6), batch=2)
    found = list(network_of(weights).streams(**arguments(scene)))
    for ours, reference in zip(found, control_streams(weights, scene), strict=True):
        for stream, expected in zip(ours, reference, strict=True):
            assert (stream - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_every_input_matters():
    weights, scene = control_weights(), Scene.random((4, 4))
    network, given = network_of(weights), arguments(scene)
    base = network(**given)[-1]
    for name, value in given.items():
        changed = network(**{**given, name: 0.5 * value})[-1]
        assert (changed.image - base.image).abs().max() > 1e-3, name
    assert (network(**{**given, "guidance": None})[-1].image - base.image).abs().max() > 1e-3


def test_strengths():
    stream, update = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    assert torch.equal(inject_text(stream, update, 0.0, True), stream)
    assert torch.equal(inject_text(stream, update, 0.0, False), stream)
    torch.testing.assert_close(inject_text(stream, update, 0.6, True), stream + 0.6 * update)
    torch.testing.assert_close(inject_text(stream, update, 0.6, False), 0.4 * stream + 0.6 * update)
    torch.testing.assert_close(inject_text(stream, update, 1.0, False), update)
    longer = torch.cat([stream, stream], dim=1)
    out = inject_image(longer, update, 0.5)
    torch.testing.assert_close(out[:, :5], stream + 0.5 * update)
    assert torch.equal(out[:, 5:], stream)


def test_default_map():
    assert spread_evenly(9, 19) == (0, 2, 4, 6, 8, 10, 12, 14, 16)
    assert Injection().blocks(2, 3) == (0, 1)
    assert Injection((0, 2)).blocks(2, 3) == (0, 2)


def test_metadata_round_trip_and_defaults():
    for injection in (Injection((0, 2), False), Injection((1,)), Injection()):
        layers = len(injection.dit_blocks or (0,))
        assert Injection.from_metadata(injection.to_metadata(), layers) == injection
    assert Injection.from_metadata({"format": "pt"}, 2) == Injection(None, True)
    assert Injection.from_metadata({METADATA_KEY: "{}"}, 2) == Injection(None, True)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "not a table"),
        (json.dumps({"text_residual": "yes"}), "'yes'"),
        (json.dumps({"dit_blocks": [0]}), r"\[0\], not 2 different"),
        (json.dumps({"dit_blocks": [1, 1]}), "not 2 different"),
        (json.dumps({"dit_blocks": [0, -1]}), "not 2 different"),
        (json.dumps({"dit_blocks": [0, True]}), "not 2 different"),
        (json.dumps({"dit_blocks": "0,1"}), "not 2 different"),
    ],
)
def test_malformed_metadata(stated, said):
    with pytest.raises(ValueError, match=said):
        Injection.from_metadata({METADATA_KEY: stated}, 2)


def test_maps_that_do_not_fit_the_model():
    with pytest.raises(ValueError, match=r"block 3 and this model has 3 \(0 to 2\)"):
        Injection((0, 3)).blocks(2, 3)
    with pytest.raises(ValueError, match="4 control blocks and this model only 3"):
        Injection().blocks(4, 3)
