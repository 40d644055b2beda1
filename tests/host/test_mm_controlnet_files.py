"""MM-ControlNet files: loading, precisions, making one from FLUX, saving, and what is said about the wrong thing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from harness.checkpoints import flux
from harness.dreamsr import (
    METADATA_KEY,
    POOLED_WIDTH,
    TEXT_WIDTH,
    BlockRecorder,
    Scene,
    apply_control,
    control_config,
    control_weights,
    load_control,
    load_flux,
    sample,
    save_control,
    velocity,
)
from harness.vosr import correlation


@pytest.fixture(scope="module")
def flux_weights() -> dict[str, Tensor]:
    return flux(1, context_width=TEXT_WIDTH, pooled_width=POOLED_WIDTH, single_blocks=1)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return control_weights()


@pytest.fixture(scope="module")
def model(host, flux_weights):
    return load_flux(host, "tiny_flux.safetensors", flux_weights)


@pytest.fixture
def scene() -> Scene:
    return Scene.random((4, 6))


def initialise(model: Any, **changes: Any):
    from realisr.host.dreamsr.control.initialise import initialise_mm_control

    return initialise_mm_control(model, **({"layers": 2} | changes))


def controlled(model: Any, control: Any, scene: Scene, **changes: Any) -> Tensor:
    return velocity(*apply_control(model, control, scene, **changes)[:2], scene)


# --- an untrained one ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_dtype", ["default", "fp8_e4m3fn"])
def test_untrained_control_changes_nothing(host, model, weight_dtype):
    """Bit for bit, guided and over several steps; in 8-bit too."""
    import nodes

    scene = Scene.random((4, 4), batch=2)
    (source,) = host.run(nodes.UNETLoader, unet_name="tiny_flux.safetensors", weight_dtype=weight_dtype)
    control = initialise(source)
    patched, positive, _ = apply_control(source, control, scene)
    assert torch.equal(sample(patched, positive, scene), sample(source, scene.positive, scene))
    # Local prompts as long as each other, so that the host puts both branches into one forward as it does without.
    patched, positive, negative = apply_control(source, control, scene, local=None, negative=scene.negative)
    result = sample(patched, positive, scene, negative, cfg=2.0)
    assert torch.equal(result, sample(source, scene.positive, scene, cfg=2.0))
    with torch.no_grad():
        control.network.context_mlp[0].net[2].bias.fill_(0.3)
    assert not torch.equal(sample(patched, positive, scene, negative, cfg=2.0), result)


@pytest.mark.parametrize(("layers", "dit_blocks", "copied"), [(2, "", [0, 1]), (2, "0, 2", [0, 2]), (3, "", [0, 1, 2])])
def test_copied_blocks_compute_what_the_dit_does(model, scene, layers, dit_blocks, copied):
    control = initialise(model, layers=layers, dit_blocks=dit_blocks)
    assert control.injection.dit_blocks == tuple(copied) and control.injection.text_residual
    recorder = BlockRecorder()
    velocity(recorder.watch(model), scene.positive, scene)
    as_dit = (scene.z_t, torch.tensor([scene.t]), scene.text, scene.pooled, torch.tensor([scene.guidance]))
    streams = list(control.network.streams(*as_dit))
    unbroken = [layer for layer, block in enumerate(copied) if layer == block]
    for layer in unbroken:
        for stream, name in zip(streams[layer], ("img", "txt"), strict=True):
            torch.testing.assert_close(stream, recorder.streams[layer][name], atol=5e-5, rtol=1e-5)


def test_fresh_layers(model):
    first, same, other = initialise(model), initialise(model), initialise(model, seed=1)
    for one, again, different in zip(*(c.network.context_attn for c in (first, same, other)), strict=True):
        assert torch.equal(one.to_q.weight, again.to_q.weight)
        assert not torch.equal(one.to_q.weight, different.to_q.weight)
        assert one.to_v.weight.abs().max() > 0.05
    zeros = [*first.network.controlnet_blocks, *(mlp.net[2] for mlp in first.network.context_mlp)]
    assert all(not parameter.any() for layer in zeros for parameter in layer.parameters())


def test_lora_of_the_source_is_copied_loaded_or_not(host, model, flux_weights, scene):
    import nodes

    down, up = torch.randn(4, 256), torch.randn(768, 4) * 0.1
    lora = {
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": down,
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": up,
    }
    host.save_model("loras", "qkv.safetensors", lora)
    (patched,) = host.run(nodes.LoraLoaderModelOnly, model=model, lora_name="qkv.safetensors", strength_model=1.0)
    expected = (flux_weights["double_blocks.0.img_attn.qkv.weight"] + up @ down)[:256]
    for _ in ("not loaded", "loaded"):
        weight = initialise(patched).network.transformer_blocks[0].attn.to_q.weight
        torch.testing.assert_close(weight.detach(), expected, atol=1e-5, rtol=1e-5)
        velocity(patched, scene.positive, scene)
    base = initialise(model).network.transformer_blocks[0].attn.to_q.weight
    assert torch.equal(base, flux_weights["double_blocks.0.img_attn.qkv.weight"][:256])
    velocity(model, scene.positive, scene)


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float8_e4m3fn, None, torch.bfloat16),
        (torch.float16, torch.float32, torch.float32),
    ],
)
def test_precision_of_the_new_weights(host, flux_weights, stored, asked, expected):
    import nodes

    host.save_model("diffusion_models", "stored.safetensors", {k: v.to(stored) for k, v in flux_weights.items()})
    dtype = "fp8_e4m3fn" if stored == torch.float8_e4m3fn else "default"
    (source,) = host.run(nodes.UNETLoader, unet_name="stored.safetensors", weight_dtype=dtype)
    if stored == torch.bfloat16:
        source.model.diffusion_model.to(stored)
    network = initialise(source, dtype=asked).network
    assert {parameter.dtype for parameter in network.parameters()} == {expected}
    copied = flux_weights["double_blocks.1.txt_mlp.0.weight"].to(stored).to(expected)
    assert torch.equal(network.transformer_blocks[1].ff_context.net[0].proj.weight, copied)


def test_from_a_scaled_fp8_model(host, flux_weights, scene):
    import nodes

    scaled = dict(flux_weights)
    for name in [name for name in flux_weights if name.startswith("double_blocks.") and name.endswith("qkv.weight")]:
        scale = flux_weights[name].abs().max() / 448
        scaled[name] = (flux_weights[name] / scale).to(torch.float8_e4m3fn)
        scaled[name.replace(".weight", ".weight_scale")] = scale
        mark = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}).encode()
        scaled[name.replace(".weight", ".comfy_quant")] = torch.tensor(list(mark), dtype=torch.uint8)
    host.save_model("diffusion_models", "scaled.safetensors", scaled)
    (source,) = host.run(nodes.UNETLoader, unet_name="scaled.safetensors", weight_dtype="default")
    with torch.inference_mode():
        control = initialise(source)
    key = control.network.transformer_blocks[0].attn.to_k.weight
    expected = flux_weights["double_blocks.0.img_attn.qkv.weight"][256:512]
    assert correlation(key.float(), expected) > 0.998 and (key.float() - expected).abs().max() < 0.05
    assert torch.equal(controlled(source, control, scene), velocity(source, scene.positive, scene))


def test_from_flux_fill(host):
    """Its image embedding reads more than the latent; the part for the latent is copied."""
    state = flux(2, fill_model=True, context_width=TEXT_WIDTH, pooled_width=POOLED_WIDTH, single_blocks=1)
    source = load_flux(host, "fill.safetensors", state)
    control = initialise(source)
    assert control.config.latent_channels == 16
    assert torch.equal(control.network.x_embedder.weight, state["img_in.weight"][:, :64])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": 4}, "4 control blocks and this model only 3"),
        ({"dit_blocks": "0,7"}, "block 7 and this model has 3"),
    ],
)
def test_initialising_more_than_there_is(model, changes, said):
    with pytest.raises(ValueError, match=said):
        initialise(model, **changes)


def test_node_refuses_block_lists_before_the_queue_runs(host):
    from realisr.nodes.dreamsr_control import ApplyMMControlNet, InitialiseMMControlNet

    assert InitialiseMMControlNet.validate_inputs(2, "0, 2") is True
    assert "not 2 different block numbers" in InitialiseMMControlNet.validate_inputs(2, "0,0")
    assert "not 9 different" in InitialiseMMControlNet.validate_inputs(9, "one")
    assert ApplyMMControlNet.validate_inputs(0.2, 0.8) is True
    assert "leave no step" in ApplyMMControlNet.validate_inputs(0.8, 0.2)


# --- saving and loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_saved_file_loads_back_identical(host, weights, stored):
    from realisr.host.dreamsr.control.loader import load_mm_control
    from realisr.nodes.dreamsr_control import SaveMMControlNet

    dtype = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8_e4m3fn"}[stored]
    stated = {"dit_blocks": [0, 2], "text_residual": False}
    control = load_control(host, "to_save.safetensors", {k: v.to(stored) for k, v in weights.items()}, stated, dtype)
    prefix = f"controlnet/saved_{dtype}"
    host.run(SaveMMControlNet, mm_controlnet=control, filename_prefix=prefix)
    (written,) = (host.base / "output" / "controlnet").glob(f"saved_{dtype}_*.safetensors")
    with safe_open(written, "pt") as file:
        assert json.loads(file.metadata()[METADATA_KEY]) == stated
        assert all(torch.equal(file.get_tensor(key).float(), weights[key].to(stored).float()) for key in weights)
        assert set(file.keys()) == set(weights)
    again = host.models / "controlnet" / f"saved_{dtype}.safetensors"
    written.rename(again)
    loaded = load_mm_control(again.name, dtype)
    assert loaded.injection == control.injection and loaded.config == control.config
    before, after = control.network.state_dict(), loaded.network.state_dict()
    assert all(
        after[key].dtype == value.dtype and torch.equal(after[key].float(), value.float())
        for key, value in before.items()
    )


def test_saved_file_keeps_the_workflow(host, model):
    from realisr.host.dreamsr.control.loader import save_mm_control

    path = save_mm_control(initialise(model), "controlnet/fresh", {"prompt": {"1": {}}, "workflow": None})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["prompt"]) == {"1": {}} and "workflow" not in metadata
    assert json.loads(metadata[METADATA_KEY]) == {"dit_blocks": [0, 1], "text_residual": True}


@pytest.mark.parametrize(("dtype", "near"), [("fp16", 0.999), ("bf16", 0.998), ("fp8_e4m3fn", 0.97), ("fp8_e5m2", 0.9)])
def test_weight_dtypes(host, model, weights, scene, dtype, near):
    exact = controlled(model, load_control(host, "dtypes.safetensors", weights), scene)
    control = load_control(host, "dtypes.safetensors", weights, dtype=dtype)
    result = controlled(model, control, scene)
    change, reference = (value - velocity(model, scene.positive, scene) for value in (result, exact))
    assert not torch.equal(result, exact) and correlation(change, reference) > near


def test_scaled_fp8_file(host, model, weights, scene):
    exact = controlled(model, load_control(host, "plain.safetensors", weights), scene)
    scaled = dict(weights)
    for name in [name for name in weights if ".attn.to_" in name and name.endswith(".weight")]:
        scale = weights[name].abs().max() / 448
        scaled[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
        scaled[name.replace(".weight", ".weight_scale")] = scale
        mark = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}).encode()
        scaled[name.replace(".weight", ".comfy_quant")] = torch.tensor(list(mark), dtype=torch.uint8)
    with torch.inference_mode():
        control = load_control(host, "scaled_control.safetensors", scaled, dtype="default")
    result = controlled(model, control, scene)
    assert not torch.equal(result, exact) and correlation(result, exact) > 0.99


def test_file_without_metadata_or_guidance(host, model, scene):
    config = control_config(has_guidance=False)
    control = load_control(host, "bare.safetensors", control_weights(config))
    assert control.injection.dit_blocks is None and control.injection.text_residual
    assert not control.config.has_guidance
    same = load_control(host, "mapped.safetensors", control_weights(config), {"dit_blocks": [0, 1]})
    assert torch.equal(controlled(model, control, scene), controlled(model, same, scene))


def test_nodes(host, model, weights, scene):
    """What the nodes hand on, from file to sampler."""
    from realisr.nodes.dreamsr_control import ApplyMMControlNet, InitialiseMMControlNet, LoadMMControlNet

    name = save_control(host, "by_node.safetensors", weights, {"dit_blocks": [0, 2]})
    (control,) = host.run(LoadMMControlNet, control_name=name, weight_dtype="fp32")
    settings = {"strength": 0.7, "start_percent": 0.0, "end_percent": 0.9, "text_branch": False}
    patched, positive, negative = host.run(
        ApplyMMControlNet,
        model=model,
        mm_controlnet=control,
        positive=scene.positive,
        latent=scene.latent,
        local_positive=scene.local,
        negative=scene.negative,
        **settings,
    )
    same = apply_control(
        model,
        load_control(host, "by_node.safetensors", weights, {"dit_blocks": [0, 2]}),
        scene,
        negative=scene.negative,
        strength=0.7,
        end=0.9,
        text_branch=False,
    )
    assert torch.equal(velocity(patched, positive, scene), velocity(same[0], same[1], scene))
    assert torch.equal(velocity(patched, negative, scene), velocity(same[0], same[2], scene))
    (fresh,) = host.run(InitialiseMMControlNet, model=model, layers=1, dit_blocks="2", dtype="bf16", seed=3)
    assert fresh.injection.dit_blocks == (2,) and fresh.network.x_embedder.weight.dtype == torch.bfloat16


# --- the wrong thing -------------------------------------------------------------------------------------------------


def test_wrong_files(host, flux_weights, weights):
    def load(state, stated=None):
        return load_control(host, "wrong.safetensors", state, stated)

    with pytest.raises(
        ValueError, match=r"not a DreamSR MM-ControlNet: it lacks 'x_embedder.weight'.*a FLUX diffusion model"
    ):
        load(flux_weights)
    ordinary = {name: value for name, value in weights.items() if not name.startswith(("context_attn", "context_mlp"))}
    with pytest.raises(ValueError, match=r"lacks 'context_mlp.0.net.0.proj.weight'"):
        load(ordinary)
    incomplete = {name: value for name, value in weights.items() if name != "controlnet_blocks.1.bias"}
    with pytest.raises(ValueError, match=r"does not fit a DreamSR MM-ControlNet: missing controlnet_blocks.1.bias"):
        load(incomplete)
    with pytest.raises(ValueError, match=r"unexpected single_transformer_blocks.0.norm.linear.weight"):
        load({**weights, "single_transformer_blocks.0.norm.linear.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"wrong.safetensors cannot be used: .*not 2 different block numbers"):
        load(weights, {"dit_blocks": [0, 1, 2]})


def test_control_for_another_width(host, model, scene):
    wide = control_weights(control_config(hidden_size=384, mlp_hidden=256, context_hidden=256, layers=1))
    control = load_control(host, "wide.safetensors", wide)
    with pytest.raises(ValueError, match=r"wide.safetensors expects hidden 384, this model has 256"):
        apply_control(model, control, scene)


def test_control_for_a_deeper_model(host, model, weights, scene):
    control = load_control(host, "deep.safetensors", weights, {"dit_blocks": [0, 12]})
    with pytest.raises(ValueError, match="acts on two-stream block 12 and this model has 3"):
        apply_control(model, control, scene)


def test_other_kinds_of_model(multi_step, host, weights, scene):
    control = load_control(host, "plain.safetensors", weights)
    vosr = multi_step.load()
    with pytest.raises(ValueError, match=r"needs FLUX.1-dev, and the VOSR model tiny"):
        apply_control(vosr, control, scene)
    with pytest.raises(ValueError, match=r"made from a FLUX.1 model; the VOSR model tiny"):
        initialise(vosr)


def test_inputs_that_do_not_fit(host, model, weights, scene):
    control = load_control(host, "plain.safetensors", weights)
    with pytest.raises(ValueError, match=r"shape \[1, 4, 4, 6\], but plain.safetensors reads 16 channels.*ae.safe"):
        apply_control(model, control, scene, latent={"samples": torch.zeros(1, 4, 4, 6)})
    with pytest.raises(ValueError, match=r"local_positive has text tokens 77 wide.*reads 32 and 768"):
        apply_control(model, control, scene, local=[[torch.zeros(1, 3, 77), {}]])
    with pytest.raises(ValueError, match="negative has text tokens 32 wide and pooled text 5 wide"):
        apply_control(model, control, scene, negative=[[scene.text, {"pooled_output": torch.zeros(1, 5)}]])
    with pytest.raises(ValueError, match="local_positive holds 2 prompts"):
        apply_control(model, control, scene, local=scene.local * 2)
    with pytest.raises(ValueError, match=r"start_percent 0.5 and end_percent 0.5 leave no step"):
        apply_control(model, control, scene, start=0.5, end=0.5)


def test_latents_that_do_not_fit_the_sampled_one(host, model, weights, scene):
    control = load_control(host, "plain.safetensors", weights)
    with pytest.raises(ValueError, match="being sampled is 4x6 cells, the one given to Apply MM-ControlNet is 8x6"):
        controlled(model, control, scene, latent={"samples": torch.zeros(1, 16, 8, 6)})
    with pytest.raises(ValueError, match="holds 1 latents, which is no multiple of the 2"):
        controlled(model, control, scene, latent={"samples": torch.zeros(2, 16, 4, 6)})


def test_positive_that_was_not_connected(host, model, weights, scene):
    control = load_control(host, "plain.safetensors", weights)
    patched, _, _ = apply_control(model, control, scene)
    with pytest.raises(ValueError, match="has an MM-ControlNet that no conditioning of this run is for"):
        velocity(patched, scene.positive, scene)


def test_model_that_was_not_connected(host, model, weights, scene):
    """Plain FLUX cannot notice; a MODEL with another control does."""
    control, other = (load_control(host, f"{name}.safetensors", weights) for name in ("one", "other"))
    _, positive, _ = apply_control(model, control, scene)
    patched, both, _ = apply_control(model, other, scene, positive=positive)
    with pytest.raises(ValueError, match=r"for the MM-ControlNet one.safetensors, which the MODEL does not have"):
        velocity(patched, both, scene)
