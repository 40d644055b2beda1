"""The VOSR network against the reference: forward, rotary tables, guidance."""

from __future__ import annotations

import pytest
import torch

from oracles import vosr as oracle
from parity import golden
from realisr.models.vosr import dit, sampling
from realisr.models.vosr.config import VOSRConfig

OUT_TOLERANCE, MID_TOLERANCE = 2e-5, 3e-5
ROPE_TOLERANCE = 1e-5
GUIDED_TOLERANCE = 2e-5


def load_network(name: str) -> dit.VOSRDiT:
    config, state_dict = golden.weights(name)
    network = dit.VOSRDiT(VOSRConfig.from_shapes({key: value.shape for key, value in state_dict.items()}))
    assert network.config.hidden_size == config["hidden_size"] and network.config.depth == config["depth"]
    assert network.config.has_end_time == config.get("auxiliary_time_cond", True)
    network.load_state_dict(state_dict, strict=True)
    return network.eval()


def record(network: dit.VOSRDiT) -> dict[str, torch.Tensor]:
    """Outputs of the parts whose intermediates the golden files hold, filled during the next forward."""
    seen: dict[str, torch.Tensor] = {}
    parts = {
        "x_embed": network.x_embedder,
        "t_emb": network.t_embedder,
        "z_ln": network.layer_norm,
        "z_tok": network.mlp_ca,
        "t_block": network.t_block,
        "final_tokens": network.final_layer,
    }
    for index, block in enumerate(network.blocks):
        inner = {"norm1": block.norm1, "norm2": block.norm2, "attn": block.attn, "cross": block.cross_attn}
        parts |= {f"b{index}_{name}": part for name, part in {**inner, "mlp": block.mlp, "out": block}.items()}
    if network.config.has_end_time:
        parts["r_emb"] = network.r_embedder
    for name, module in parts.items():
        module.register_forward_hook(lambda _module, _inputs, output, name=name: seen.__setitem__(name, output))
    return seen


@torch.no_grad()
@pytest.mark.parametrize("case", golden.cases("dit_forward_*") + golden.cases("dit_nonsquare_ext_*"))
def test_forward(case):
    network = load_network(case.parameters["model"])
    seen = record(network)
    x, t, r, z = (case.get(f"in/{name}") for name in ("x", "t", "r", "z"))
    velocity = network(x, t, r, z)
    golden.assert_within(velocity, case["out/v"], OUT_TOLERANCE)

    grid = tuple(side // network.config.patch_size for side in x.shape[-2:])
    seen["rope_cos"], seen["rope_sin"] = network.feat_rope.tables(grid, torch.float32, None)
    seen["t_sincos"] = dit.TimeEmbedder.sinusoid(t)
    seen["c"] = network.embed_time(t, r, torch.float32)
    for key in case.keys("mid/*"):
        name = key.removeprefix("mid/")
        golden.assert_within(seen[name], case[key], MID_TOLERANCE, name)


@torch.no_grad()
def test_one_zero_token_stands_for_all():
    """The weak branch's features are all zero, so one token of them is the same condition."""
    network = load_network("dit_c4_ms")
    x, t = torch.randn(2, 8, 16, 16), torch.tensor([0.9, 0.3])
    blank = torch.zeros(2, 1024, network.config.context_width)
    golden.assert_within(network(x, t, None, blank[:, :1]), network(x, t, None, blank), OUT_TOLERANCE)


@torch.no_grad()
def test_context_can_be_encoded_once_and_listed_in_parts():
    """Branches with different numbers of tokens run in one forward when each brings its own context."""
    network = load_network("dit_c4_ms")
    x, t = torch.randn(3, 8, 16, 16), torch.tensor([0.9, 0.3, 0.3])
    features, blank = torch.randn(2, 11, network.config.context_width), torch.zeros(1, 1, network.config.context_width)
    parts = [network.encode_context(features), network.encode_context(blank)]
    together = network(x, t, context=parts)
    golden.assert_within(together[:2], network(x[:2], t[:2], None, features), OUT_TOLERANCE)
    golden.assert_within(together[2:], network(x[2:], t[2:], None, blank), OUT_TOLERANCE)


@pytest.mark.parametrize("case", golden.cases("rope_tables"))
def test_rotary_tables(case):
    table = dit.RotaryTable(case.parameters["train_grid"], case.parameters["head_dim"])
    for grid in case.parameters["grids"]:
        stride = case.parameters.get("row_stride", {}).get(str(grid), 1)
        cos, sin = table.tables((grid, grid), torch.float32, None)
        golden.assert_within(cos[::stride], case[f"grid{grid}/out/cos"], ROPE_TOLERANCE, f"cos, grid {grid}")
        golden.assert_within(sin[::stride], case[f"grid{grid}/out/sin"], ROPE_TOLERANCE, f"sin, grid {grid}")


@torch.no_grad()
@pytest.mark.parametrize("case", golden.cases("guidance_*"))
def test_guidance(case):
    network = load_network(case.parameters["model"])
    lq, x, z = case["in/lq"], case["in/x_t"], case["in/z"]
    checked = 0
    for key in case.keys("t*/w*/s*/out/v"):
        t, w, s = (float(part[1:]) for part in key.split("/")[:3])
        velocity = oracle.Velocity(network, sampling.RestorationGuidance(s))
        guided = velocity(x, t, None, oracle.Condition(lq, z, w))
        golden.assert_within(guided, case[key], GUIDED_TOLERANCE, key)
        checked += 1
    assert checked
