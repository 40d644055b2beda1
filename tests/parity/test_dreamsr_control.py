"""The MM-ControlNet against the reference: its features, and the velocity of the host's FLUX with them injected."""

from __future__ import annotations

import pytest
import torch

from harness.dreamsr import BlockRecorder, Scene, apply_control, load_control, load_flux, velocity
from parity import flux_oracle, golden
from parity.flux_oracle import file_parameters, inputs
from realisr.models.dreamsr.config import MMControlNetConfig
from realisr.models.dreamsr.mm_controlnet import MMControlNet

pytestmark = pytest.mark.slow

OUT_TOLERANCE, MID_TOLERANCE = 4e-5, 6e-5

FEATURES = golden.cases("dreamsr_control", "flux", lambda case: "out/img0" in case)
INJECTED = golden.cases("dreamsr_control", "flux", lambda case: "out/v" in case)


@torch.no_grad()
@pytest.mark.parametrize("case", FEATURES)
def test_features(case):
    config, state_dict = golden.weights(file_parameters(case)["control"], "flux")
    network = MMControlNet(MMControlNetConfig.from_shapes({key: value.shape for key, value in state_dict.items()}))
    assert network.config.hidden_size == config["hidden_size"] and network.config.layers == config["layers"]
    network.load_state_dict(state_dict, strict=True)
    arguments = [inputs(case)[f"in/{name}"] for name in ("z_lq", "t", "txt_local", "pooled_local", "guidance")]
    judge = flux_oracle.features(case)
    for layer, (image, text) in enumerate(network.streams(*arguments)):
        for key, stream in ((f"img{layer}", image), (f"txt{layer}", text)):
            judge.check(key, stream, case.get(f"out/{key}"), OUT_TOLERANCE, f"{key}, a stream after its block")
    for layer, features in enumerate(network(*arguments)):
        key = f"img_out{layer}"
        judge.check(key, features.image, case.get(f"out/{key}"), OUT_TOLERANCE, f"{key}, a residual")


def scene_of(case) -> Scene:
    given = inputs(case)
    return Scene(
        given["in/z_t"],
        given["in/z_lq"],
        given["in/txt_global"],
        given["in/pooled_global"],
        given["in/txt_local"],
        given["in/pooled_local"],
        given["in/t"].item(),
        given["in/guidance"].item(),
    )


@pytest.mark.parametrize("case", INJECTED)
def test_injected_velocity(host, case):
    names = file_parameters(case)
    flux = load_flux(host, f"golden_{names['model']}.safetensors", golden.weights(names["model"], "flux")[1])
    stated = {name: case.parameters[name] for name in ("dit_blocks", "text_residual")}
    weights = golden.weights(names["control"], "flux")[1]
    control = load_control(host, "golden_control.safetensors", weights, stated)
    scene, recorder = scene_of(case), BlockRecorder()
    model, positive, _ = apply_control(
        recorder.watch(flux),
        control,
        scene,
        strength=case.parameters["strength"],
        text_branch=case.parameters["text_branch"],
    )
    judge = flux_oracle.controlled(case)
    judge.check("v", velocity(model, positive, scene), case["out/v"], OUT_TOLERANCE)
    for block, streams in recorder.streams.items():
        for name, stream in streams.items():
            judge.check(f"double{block}_{name}", stream, case.get(f"mid/block{block}_{name}"), MID_TOLERANCE)
