"""Released checkpoints, by their published key lists: the network built from them has exactly those tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from realisr.models.vosr.config import VOSRConfig, strip_wrapper_prefix
from realisr.models.vosr.dit import VOSRDiT

FORMATS = Path(__file__).resolve().parents[1] / "formats"
RELEASES = ("0.5B", "0.5B_os", "1.4B", "1.4B_os")


def read(name: str):
    return json.loads((FORMATS / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("release", RELEASES)
def test_network_has_exactly_the_released_tensors(release):
    keys = read(f"vosr_{release}.keys.json")
    network = VOSRDiT(VOSRConfig.from_shapes(keys), device=torch.device("meta"))
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == keys


@pytest.mark.parametrize("release", RELEASES)
def test_config_is_the_released_one(release):
    published = read(f"vosr_{release}.config.json")
    config = VOSRConfig.from_shapes(read(f"vosr_{release}.keys.json"))
    assert config == VOSRConfig.from_args(published["args"], config.latent_channels)
    assert config.disagreements(published["args"]) == []
    derived = published["derived"]
    assert (config.head_dim, config.mlp_hidden, config.context_hidden, config.train_grid) == (
        derived["head_dim"],
        derived["swiglu_hidden"],
        derived["context_mlp_hidden"],
        derived["rope_train_grid"],
    )
    network = VOSRDiT(config, device=torch.device("meta"))
    assert sum(parameter.numel() for parameter in network.parameters()) == derived["parameters"]


def test_disagreement_names_the_setting_and_both_values():
    config = VOSRConfig.from_shapes(read("vosr_0.5B.keys.json"))
    args = {**read("vosr_0.5B.config.json")["args"], "depth": 36, "ae_type": "qwen"}
    assert config.disagreements(args) == [
        "depth is 36 in args.json but 28 in the tensors",
        "ae_type 'qwen' means 16 latent channels in args.json but the tensors have 4",
    ]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapper_prefixes_are_dropped(prefix):
    assert strip_wrapper_prefix({f"{prefix}a": 1, f"{prefix}b.c": 2}) == {"a": 1, "b.c": 2}


def test_a_name_that_only_some_share_is_no_prefix():
    mixed = {"module.a": 1, "b": 2}
    assert strip_wrapper_prefix(mixed) == mixed
