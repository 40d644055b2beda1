"""Prompts over the API whose dynamic inputs are missing, null or odd: a sentence that names the input."""

from __future__ import annotations

import copy
import inspect
import json
import math
import random
import re
import shutil
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from comfy_client import PromptError
from harness.checkpoints import vosr_args
from harness.schemas import given_to, grey, in_a_thread, pack_nodes
from harness.vosr import TinyVOSR

ODD: list[Any] = [None, "", "no such option", 3, True, math.nan, math.inf, -math.inf, [], [1], {}, {"a": 1}, 1e400]


def combos() -> dict[str, Any]:
    """ "Node id.input" -> every dynamic input of the pack's nodes."""
    from comfy_api.latest import io

    return {
        f"{node.define_schema().node_id}.{given.id}": given
        for node in pack_nodes()
        for given in node.define_schema().inputs
        if isinstance(given, io.DynamicCombo.Input)
    }


def readers() -> dict[str, Any]:
    """The same -> what turns its value into what it means."""
    from realisr.nodes import image, inputs, pure, vosr

    picture = torch.zeros(1, 16, 24, 3)

    def size(resize: Any) -> Any:
        return inputs.target_size(picture, resize)

    return {
        "RealISR_RestorationCFGSampler.resize": size,
        "RealISR_DiptychBuilder.resize": size,
        "RealISR_DreamSRRestore.resize": size,
        "RealISR_ARTokenRestorer.resize": size,
        "RealISR_UpscaleForRestoration.resize": size,
        "RealISR_RestorationCFGSampler.tiling": vosr.chosen_tiles,
        "RealISR_ARTokenRestorer.tiling": pure.chosen_tiles,
        "RealISR_ARTokenRestorer.sampling": lambda given: pure.chosen_sampling(given, 0.9),
        "RealISR_ARTokenRestorer.decoding": pure.chosen_decoding,
        "RealISR_DegradeImage.degradation": lambda given: image.make_degradation(given, 4.0),
    }


def whole(combo: Any, key: str) -> dict[str, Any]:
    (option,) = [option for option in combo.options if option.key == key]
    return {combo.id: key, **{inner.id: inner.default for inner in option.inputs}}


def test_every_dynamic_input_is_read_by_one_of_these(host):
    assert set(combos()) <= set(readers())


def test_every_option_at_its_defaults_is_read(host):
    for place, combo in combos().items():
        for option in combo.options:
            assert readers()[place](whole(combo, option.key)) is not NotImplemented, (place, option.key)


@pytest.mark.parametrize("given", [{}, None, [], "auto", {"other": 1}])
def test_a_missing_dynamic_input_is_named_with_its_options(host, given):
    for place, combo in combos().items():
        with pytest.raises(ValueError, match=rf"^The input {combo.id} is missing\. It takes '") as error:
            readers()[place](given)
        assert all(repr(option.key) in str(error.value) for option in combo.options)


@pytest.mark.parametrize("given", [{}, None])
def test_the_nodes_themselves_say_so(host, given):
    """Before they touch a model: there is none on the sockets."""
    for node in pack_nodes():
        for place in combos():
            node_id, _, name = place.partition(".")
            if node.define_schema().node_id == node_id:
                inputs = given_to(node, "image", grey()) | {name: given}
                with pytest.raises(ValueError, match=rf"The input {name} is missing"):
                    node.execute(**inputs)


def test_an_odd_value_is_named(host, attacks):
    """Drawn: the option itself, or one of its inputs, odd or left out."""
    for place, combo in combos().items():
        for seed in range(attacks):
            draw = random.Random(seed)
            given = copy.deepcopy(whole(combo, draw.choice(combo.options).key))
            name = draw.choice(sorted(given))
            if draw.random() < 0.25:
                del given[name]
            else:
                given[name] = draw.choice(ODD)
            wanted = name if name == combo.id else f"{combo.id}.{name}"
            # A number goes where one is asked for, and whether it is in range is another's business.
            number = given.get(name) == 3 and name != combo.id
            with nullcontext() if number else pytest.raises(ValueError, match=rf"^The input {re.escape(wanted)} is "):
                readers()[place](given if not number else whole(combo, given[combo.id]))


def plain_numbers() -> list[Any]:
    """Every number widget of every node that is no part of a dynamic input, as (node, its id)."""
    from comfy_api.latest import io

    return [
        (node, given.id)
        for node in pack_nodes()
        for given in node.define_schema().inputs
        if isinstance(given, io.Float.Input)
    ]


def run(node: Any, inputs: dict[str, Any]) -> None:
    made = node.execute(**inputs)
    if inspect.isawaitable(made):
        in_a_thread(made)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_named_by_every_node(host, value):
    assert len(plain_numbers()) > 30
    for node, name in plain_numbers():
        listed = node.define_schema().is_input_list
        inputs = given_to(node, "image", grey()) | {name: [value] if listed else value}
        with pytest.raises(ValueError, match=rf"^The input {name} is {value}\. It takes a number\.$"):
            run(node, inputs)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_server_says_so_too(server, value):
    """JSON as Python and JavaScript libraries write it has NaN and Infinity, and a range does not hold NaN back."""
    graph = {
        "1": {"class_type": "RealISR_FLUXFillSigmas", "inputs": {"steps": 2, "denoise": value, "base_shift": 0.5}},
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    graph["1"]["inputs"] |= {"latent": ["2", 0], "max_shift": 1.15}
    with pytest.raises(PromptError, match="denoise"):
        server.client.run(graph)


@pytest.mark.parametrize("args", [
    {"ae_scale": 1e308}, {"ae_scale": 0}, {"ae_scale": math.nan}, {"ae_scale": "1"}, {"ae_downscale": 0},
    {"ae_downscale": 10**9}, {"ae_downscale": 1.5}, {"ae_type": ["sd2"]}, {"weak_cond_strength_aelq_list": 0.1},
    {"weak_cond_strength_aelq_list": [math.nan]}, {"weak_cond_strength_aelq_list": ["a"]},
    {"weak_cond_strength_aelq_list": [1e38]},
])  # fmt: skip
def test_an_args_json_that_no_model_was_trained_with(tiny_vosr, args):
    file = tiny_vosr.folder / "args.json"
    whole_args = vosr_args(tiny_vosr.config)
    (name,) = args
    try:
        file.write_text(json.dumps(whole_args | args), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"^{tiny_vosr.name}: in args\.json {name} is "):
            tiny_vosr.load()
    finally:
        file.write_text(json.dumps(whole_args), encoding="utf-8")
    assert tiny_vosr.load()


ODD_FILES: dict[str, Any] = {
    "folder": None,
    "empty": b"",
    "noise": b"\x00\xff\xfe",
    "deep": b"[" * 100_000,
    "list": b"[]",
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_an_args_json_that_is_no_file_of_settings(host, kind):
    """The folder stays in the list, and loading it names the file."""
    from realisr.host.vosr.files import model_choices

    tiny = TinyVOSR.create(host, f"hostile_args_{kind}")
    file = tiny.folder / "args.json"
    file.unlink()
    if ODD_FILES[kind] is None:
        file.mkdir()
    else:
        file.write_bytes(ODD_FILES[kind])
    try:
        assert tiny.name in model_choices()
        with pytest.raises(ValueError, match=r"args\.json (cannot be read|is not valid JSON|holds a list)"):
            tiny.load()
    finally:
        shutil.rmtree(tiny.folder)


@pytest.mark.parametrize("stored", [torch.ones(3), torch.ones(2, 2, dtype=torch.uint8), torch.tensor(300)])
def test_args_that_a_single_file_carries_and_are_no_text(host, tiny_vosr, stored):
    from realisr.host.vosr.loader import load_vosr_model

    host.save_model("diffusion_models", "hostile_single.safetensors", {**tiny_vosr.weights, "vosr_args": stored})
    with pytest.raises(ValueError, match=r"vosr_args in hostile_single\.safetensors is no text"):
        load_vosr_model("hostile_single.safetensors")
