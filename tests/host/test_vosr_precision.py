"""Weights in every precision the loader offers or a file may have, against the same network in float32."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from harness.vosr import Scene, TinyVOSR, correlation, run_guider

# The least correlation with float32 after four guided steps.
NEAR = {"fp16": 0.9999, "bf16": 0.999, "fp8_e4m3fn": 0.98, "fp8_e4m3fn_fast": 0.98, "fp8_e5m2": 0.95}


@pytest.fixture(scope="module")
def scene(multi_step) -> Scene:
    return Scene.random(multi_step.config)


@pytest.fixture(scope="module")
def exact(multi_step, scene) -> torch.Tensor:
    return run_guider(multi_step.load("fp32"), scene)


def tables(model) -> set[torch.dtype]:
    return {block.scale_shift_table.dtype for block in model.model.diffusion_model.blocks}


@pytest.mark.parametrize("name", NEAR)
def test_weight_dtypes(multi_step, scene, exact, name):
    from realisr.host.precision import WEIGHT_DTYPES

    model = multi_step.load(name)
    result = run_guider(model, scene)
    assert model.model_dtype() == WEIGHT_DTYPES[name]["dtype"]
    assert model.model.diffusion_model.blocks[0].attn.qkv.weight.dtype == WEIGHT_DTYPES[name]["dtype"]
    assert tables(model) == {torch.float32}
    assert torch.isfinite(result).all() and not torch.equal(result, exact)
    assert correlation(result, exact) > NEAR[name]


def test_every_dtype_offered_is_tested():
    from realisr.host.precision import WEIGHT_DTYPES

    assert set(WEIGHT_DTYPES) == {"default", "fp32", *NEAR}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_files_stored_in_less(host, multi_step, scene, exact, dtype):
    from realisr.host.vosr.loader import load_vosr_model

    weights = {name: value.to(dtype) for name, value in multi_step.weights.items()}
    name = host.save_model("diffusion_models", f"stored_{dtype}.safetensors".replace("torch.", ""), weights)
    model = load_vosr_model(name)
    assert tables(model) == {torch.float32}
    assert correlation(run_guider(model, scene), exact) > 0.97


def scaled(tiny: TinyVOSR) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Matrices in fp8 with a scale each, and the scales; the rest as it was."""
    weights, scales = {}, {}
    for name, value in tiny.weights.items():
        if name.endswith(".weight") and value.ndim == 2 and name.startswith("blocks."):
            # Far off fp8's range, so that a scale left out shows.
            scale = value.abs().max() / 448.0
            weights[name] = (value / scale).to(torch.float8_e4m3fn)
            scales[name.removesuffix(".weight")] = scale
        else:
            weights[name] = value
    return weights, scales


def save_old_style(path, weights, scales) -> None:
    extra = {f"{layer}.scale_weight": scale for layer, scale in scales.items()}
    save_file({**weights, **extra, "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, path)


def save_with_metadata(path, weights, scales) -> None:
    extra = {f"{layer}.weight_scale": scale for layer, scale in scales.items()}
    layers = {layer: {"format": "float8_e4m3fn", "full_precision_matrix_mult": True} for layer in scales}
    save_file({**weights, **extra}, path, {"_quantization_metadata": json.dumps({"layers": layers})})


def save_with_markers(path, weights, scales) -> None:
    extra = {f"{layer}.weight_scale": scale for layer, scale in scales.items()}
    mark = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}).encode()
    marks = {f"{layer}.comfy_quant": torch.tensor(list(mark), dtype=torch.uint8) for layer in scales}
    save_file({**weights, **extra, **marks}, path)


@pytest.mark.parametrize("save", [save_old_style, save_with_metadata, save_with_markers])
def test_scaled_fp8_files(host, multi_step, scene, exact, save):
    from realisr.host.vosr.loader import load_vosr_model

    name = f"{save.__name__}.safetensors"
    save(host.models / "diffusion_models" / name, *scaled(multi_step))
    # As the host's executor does: it makes quantised tensors that only inference mode can move.
    with torch.inference_mode():
        model = load_vosr_model(name)
    assert model.model.info.config == multi_step.config
    result = run_guider(model, scene)
    assert torch.isfinite(result).all() and not torch.equal(result, exact)
    assert correlation(result, exact) > NEAR["fp8_e4m3fn"]
