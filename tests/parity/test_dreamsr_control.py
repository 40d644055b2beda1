"""The MM-ControlNet against the reference: its features, and the velocity of the host's FLUX with them injected."""

from __future__ import annotations

import pytest
import torch

from harness.dreamsr import BlockRecorder, Scene, apply_control, load_control, load_flux, velocity
from parity import golden
from realisr.models.dreamsr.config import MMControlNetConfig
from realisr.models.dreamsr.mm_controlnet import MMControlNet

OUT_TOLERANCE, MID_TOLERANCE = 4e-5, 6e-5

CASES = golden.cases("dreamsr_control", "flux")


def inputs(case) -> golden.Case:
    """The case that holds this one's inputs."""
    name = case.parameters.get("inputs", case.name).split("/")[0]
    return golden.Case(case.path, name, {})


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in CASES if case.id.endswith("/features")])
def test_features(case):
    config, state_dict = golden.weights("mm_controlnet", "flux")
    network = MMControlNet(MMControlNetConfig.from_shapes({key: value.shape for key, value in state_dict.items()}))
    assert network.config.hidden_size == config["hidden_size"] and network.config.layers == config["layers"]
    network.load_state_dict(state_dict, strict=True)
    arguments = [case[f"in/{name}"] for name in ("z_lq", "t", "txt_local", "pooled_local", "guidance")]
    for layer, (image, text) in enumerate(network.streams(*arguments)):
        golden.assert_within(image, case[f"out/img{layer}"], OUT_TOLERANCE, f"image stream, block {layer}")
        golden.assert_within(text, case[f"out/txt{layer}"], OUT_TOLERANCE, f"text stream, block {layer}")
    for layer, features in enumerate(network(*arguments)):
        golden.assert_within(features.image, case[f"out/img_out{layer}"], OUT_TOLERANCE, f"residual, block {layer}")


@pytest.fixture(scope="module")
def flux(host):
    return load_flux(host, "golden_flux_dev.safetensors", golden.weights("flux_dev", "flux")[1])


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


@pytest.mark.parametrize("case", [case for case in CASES if not case.id.endswith("/features")])
def test_injected_velocity(host, flux, case):
    stated = {name: case.parameters[name] for name in ("dit_blocks", "text_residual")}
    control = load_control(host, "golden_control.safetensors", golden.weights("mm_controlnet", "flux")[1], stated)
    scene, recorder = scene_of(case), BlockRecorder()
    model, positive, _ = apply_control(
        recorder.watch(flux),
        control,
        scene,
        strength=case.parameters["strength"],
        text_branch=case.parameters["text_branch"],
    )
    golden.assert_within(velocity(model, positive, scene), case["out/v"], OUT_TOLERANCE)
    for key in case.keys("mid/block*"):
        block, stream = key.removeprefix("mid/block").split("_")
        golden.assert_within(recorder.streams[int(block)][stream], case[key], MID_TOLERANCE, key)
