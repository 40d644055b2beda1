"""The acceleration LoRA: on for one forward, by itself what Load LoRA does, and gone without a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.checkpoints import flux

SIZE = 256
RANKS = [1, 4, 300]


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Tensor]:
    return flux(11, double_blocks=2, single_blocks=1)


@pytest.fixture(scope="module")
def model(host, checkpoint) -> Any:
    import nodes

    name = host.save_model("diffusion_models", "acceleration_flux.safetensors", checkpoint)
    return host.run(nodes.UNETLoader, unet_name=name, weight_dtype="default")[0]


@pytest.fixture(scope="module")
def positive() -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    text, pooled = torch.randn(1, 5, 64, generator=generator), torch.randn(1, 32, generator=generator)
    return [[text, {"pooled_output": pooled, "guidance": 3.5}]]


@pytest.fixture(scope="module")
def latent() -> Tensor:
    return torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(2))


# Layers under each naming, with their input and output features. All kinds of part: whole, fused q/k/v, single blocks.
LAYERS = {
    "diffusers": {
        "transformer.transformer_blocks.0.attn.to_q": (SIZE, SIZE),
        "transformer.transformer_blocks.1.attn.to_v": (SIZE, SIZE),
        "transformer.transformer_blocks.1.attn.add_k_proj": (SIZE, SIZE),
        "transformer.transformer_blocks.0.ff.net.2": (4 * SIZE, SIZE),
        "transformer.single_transformer_blocks.0.attn.to_k": (SIZE, SIZE),
        "transformer.single_transformer_blocks.0.proj_mlp": (SIZE, 4 * SIZE),
        "transformer.x_embedder": (64, SIZE),
    },
    "host": {
        "diffusion_model.double_blocks.0.img_attn.qkv": (SIZE, 3 * SIZE),
        "diffusion_model.double_blocks.1.txt_mlp.0": (SIZE, 4 * SIZE),
        "diffusion_model.single_blocks.0.linear2": (5 * SIZE, SIZE),
    },
    "kohya": {
        "lora_unet_double_blocks_0_img_attn_qkv": (SIZE, 3 * SIZE),
        "lora_unet_single_blocks_0_linear1": (SIZE, 7 * SIZE),
    },
}
SUFFIXES = {
    "diffusers": ("lora_A.weight", "lora_B.weight"),
    "host": ("lora_A.weight", "lora_B.weight"),
    "kohya": ("lora_down.weight", "lora_up.weight"),
}


def lora_file(naming: str, rank: int = 4, alpha: float | None = 2.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    down, up = SUFFIXES[naming]
    made: dict[str, Tensor] = {}
    for layer, (inputs, outputs) in LAYERS[naming].items():
        made[f"{layer}.{down}"] = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
        made[f"{layer}.{up}"] = torch.randn(outputs, rank, generator=generator) * rank**-0.5
        if alpha is not None:
            made[f"{layer}.alpha"] = torch.tensor(alpha)
    return made


def guider_of(model: Any, positive: list[Any]) -> Any:
    from comfy_extras.nodes_custom_sampler import Guider_Basic

    guider = Guider_Basic(model)
    guider.set_conds(positive)
    return guider


def removed(model: Any, positive: list[Any], latent: Tensor, time: float = 1.0) -> Tensor:
    from realisr.host.dreamsr.removal import remove_degradation

    with torch.inference_mode():
        return remove_degradation(guider_of(model, positive), model, latent, time)


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.model.state_dict().items()}


@pytest.mark.parametrize(
    ("naming", "rank", "alpha"),
    [
        *((naming, 4, 2.0) for naming in LAYERS),
        ("diffusers", 4, None),
        ("diffusers", 1, 1.0),
        ("diffusers", 300, 8.0),
    ],
)
def test_equals_the_hosts_patched_weights(model, positive, latent, naming, rank, alpha):
    import comfy.sd

    from realisr.host.dreamsr.lora import AccelerationLoRA, with_forward_lora

    lora = lora_file(naming, rank, alpha)
    plain = removed(model, positive, latent)
    ours = removed(with_forward_lora(model, AccelerationLoRA(lora, "x", 0.7)), positive, latent)
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 0.7, 0)
    expected = removed(patched, positive, latent)
    assert (expected - plain).abs().max() > 0.01
    assert (ours - expected).abs().max() < 2e-4 * expected.abs().max()


def test_the_weights_are_never_touched(model, positive, latent):
    from realisr.host.dreamsr.lora import AccelerationLoRA, with_forward_lora

    plain, before = removed(model, positive, latent), weights_of(model)
    patched = with_forward_lora(model, AccelerationLoRA(lora_file("diffusers"), "x"))
    assert patched.model is model.model
    changed = removed(patched, positive, latent)
    after = weights_of(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any("forward" in vars(module) for module in model.model.modules())
    assert torch.equal(removed(model, positive, latent), plain)
    assert not torch.equal(changed, plain)
    assert torch.equal(removed(patched, positive, latent), changed)


def test_a_failing_run_takes_the_lora_out_too(model, positive, latent):
    from realisr.host.dreamsr.lora import AccelerationLoRA, with_forward_lora

    patched = with_forward_lora(model, AccelerationLoRA(lora_file("diffusers"), "x"))

    def fails(*_: Any) -> None:
        raise RuntimeError("stop here")

    patched.set_model_unet_function_wrapper(fails)
    with pytest.raises(RuntimeError, match="stop here"):
        removed(patched, positive, latent)
    assert not any("forward" in vars(module) for module in model.model.modules())


def test_the_host_counts_the_lora_and_not_a_second_model(model):
    from realisr.host.dreamsr.lora import AccelerationLoRA, with_forward_lora

    lora = lora_file("diffusers")
    (extra,) = with_forward_lora(model, AccelerationLoRA(lora, "x")).get_additional_models()
    assert extra.model_size() == sum(value.nbytes for name, value in lora.items() if not name.endswith("alpha"))


def test_stacks_with_a_lora_the_host_adds_in_the_forward(model, positive, latent):
    import comfy.sd

    from realisr.host.dreamsr.lora import AccelerationLoRA, with_forward_lora

    plain = removed(model, positive, latent)
    first, second = lora_file("kohya"), lora_file("host", rank=2)
    bypassed, _ = comfy.sd.load_bypass_lora_for_models(model, None, first, 1.0, 0)
    ours = removed(with_forward_lora(bypassed, AccelerationLoRA(second, "x")), positive, latent)
    both, _ = comfy.sd.load_lora_for_models(model, None, first, 1.0, 0)
    both, _ = comfy.sd.load_lora_for_models(both, None, second, 1.0, 0)
    assert (ours - removed(both, positive, latent)).abs().max() < 1e-3
    assert torch.equal(removed(model, positive, latent), plain)


@pytest.mark.parametrize("time", [1.0, 0.8])
def test_is_one_forward_on_the_latent_itself(model, positive, latent, time):
    import comfy.model_management

    calls = []

    def velocity(apply_model, arguments):
        result = apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        calls.append((arguments["input"].clone(), arguments["timestep"].clone(), result))
        return result

    watched = model.clone()
    watched.set_model_unet_function_wrapper(velocity)
    result = removed(watched, positive, latent, time)
    ((seen, timestep, denoised),) = calls
    scaled = model.model.process_latent_in(latent)
    assert torch.equal(seen, scaled)
    assert timestep.tolist() == pytest.approx([time, time])
    comfy.model_management.load_models_gpu([model])
    text, options = positive[0]
    with torch.inference_mode():
        v = model.model.diffusion_model(
            scaled,
            torch.full((2,), time),
            text.repeat(2, 1, 1),
            options["pooled_output"].repeat(2, 1),
            torch.full((2,), 3.5),
        )
    expected = scaled - time * v
    assert (denoised - expected).abs().max() < 1e-5
    assert (model.model.process_latent_in(result) - expected).abs().max() < 1e-5


def test_the_node_gives_the_texture_stage(host, model, positive, latent):
    from realisr.nodes.dreamsr import AccelerationLoRAStep

    name = host.save_model("loras", "acceleration.safetensors", lora_file("diffusers"))
    out, sigmas = host.run(
        AccelerationLoRAStep,
        guider=guider_of(model, positive),
        latent={"samples": latent},
        lora_name=name,
        strength=1.0,
        texture_start=0.8,
        texture_steps=16,
        shift=1.0,
        removal_time=1.0,
    )
    assert out["samples"].shape == latent.shape
    assert not torch.allclose(out["samples"], removed(model, positive, latent))
    assert sigmas.tolist() == pytest.approx([0.8 * (1 - k / 16) for k in range(17)], abs=1e-7)


def test_a_lora_of_another_model_is_named(model):
    from realisr.host.dreamsr.lora import AccelerationLoRA, with_forward_lora

    other = {
        "lora_unet_input_blocks_1.lora_down.weight": torch.zeros(4, 8),
        "lora_unet_input_blocks_1.lora_up.weight": torch.zeros(8, 4),
    }
    with pytest.raises(ValueError, match=r"No layer of sdxl\.safetensors .*lora_unet_input_blocks_1"):
        with_forward_lora(model, AccelerationLoRA(other, "sdxl.safetensors"))


@pytest.mark.parametrize("naming", LAYERS)
def test_a_tensor_that_is_missing_or_of_another_size_is_refused_by_name(model, naming):
    """One after another: both matrices, of whole layers and of parts of fused ones."""
    from realisr.host.dreamsr.lora import AccelerationLoRA, with_forward_lora

    whole = lora_file(naming, alpha=None)
    # Without its up matrix a layer is no LoRA's to the host, which warns.
    missing = [
        {key: value for key, value in whole.items() if key != name} for name in whole if SUFFIXES[naming][0] in name
    ]
    narrow = [whole | {name: value[..., :-1].contiguous()} for name, value in whole.items()]
    short = [whole | {name: value[:-1].contiguous()} for name, value in whole.items()]
    for broken in (*missing, *narrow, *short):
        with pytest.raises(ValueError, match=r"broken\.safetensors (is incomplete: it lacks|does not fit this model)"):
            with_forward_lora(model, AccelerationLoRA(broken, "broken.safetensors"))
    assert with_forward_lora(model, AccelerationLoRA(whole, "whole.safetensors"))


@pytest.mark.parametrize(
    "layer", ["pos_embed_input", "final_layer.adaLN_modulation.1", "double_blocks.0.img_attn.norm.query_norm"]
)
def test_a_layer_that_the_model_cannot_update_is_named(model, layer):
    """One that this FLUX lacks, one whose halves the naming swaps, and one that is no linear layer."""
    from comfy.utils import flux_to_diffusers

    from realisr.host.dreamsr.lora import AccelerationLoRA, with_forward_lora

    names = flux_to_diffusers({"depth": 1, "hidden_size": SIZE})
    (stem,) = [
        name.removesuffix(".weight")
        for name, source in names.items()
        if (source if isinstance(source, str) else source[0]) == f"{layer}.weight"
    ]
    file = {
        f"transformer.{stem}.lora_A.weight": torch.zeros(4, SIZE),
        f"transformer.{stem}.lora_B.weight": torch.zeros(SIZE, 4),
    }
    with pytest.raises(ValueError, match=rf"other\.safetensors does not fit this model.*{layer}"):
        with_forward_lora(model, AccelerationLoRA(file, "other.safetensors"))


def test_other_kinds_of_adapter_are_refused_by_name(model):
    from realisr.host.dreamsr.lora import AccelerationLoRA, with_forward_lora

    dora = lora_file("host") | {"diffusion_model.double_blocks.0.img_attn.qkv.dora_scale": torch.ones(3 * SIZE, 1)}
    with pytest.raises(ValueError, match=r"not a plain LoRA: .*double_blocks\.0\.img_attn\.qkv.*Use Load LoRA"):
        with_forward_lora(model, AccelerationLoRA(dora, "dora.safetensors"))


def test_a_model_that_predicts_noise_is_refused(model, positive, latent):
    import comfy.model_sampling

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    noise_model = model.clone()
    noise_model.add_object_patch("model_sampling", Sampling())
    with pytest.raises(ValueError, match="needs a flow-matching model"):
        removed(noise_model, positive, latent)
