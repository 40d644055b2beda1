"""PURE's backbone against the reference: full and cached forwards, guidance rows, loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from parity import golden, pure_golden
from realisr.models.pure.cache import KVCache
from realisr.models.pure.config import ChameleonConfig
from realisr.models.pure.released import fuse
from realisr.models.pure.transformer import Chameleon

TOLERANCE, LOSS_TOLERANCE, Z_LOSS_TOLERANCE = 2e-5, 1e-5, 1e-4
CASES = pure_golden.cases("transformer_*")


def load_network(case) -> Chameleon:
    data, tensors = pure_golden.weights(case.path.name.removesuffix(golden.SUFFIX))
    config = ChameleonConfig.from_json(data["config"])
    network = Chameleon(config)
    network.load_state_dict(fuse(tensors, config), strict=True)
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_forward(case):
    network, ids = load_network(case), case["in.input_ids"]
    seen: dict[str, torch.Tensor] = {}
    for index, layer in enumerate(network.model.layers):
        layer.register_forward_pre_hook(
            lambda _module, args, index=index: seen.__setitem__(f"mid.hidden_states.{index}", args[0])
        )

    def attend(q, k, v, mask):
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if "mid.layer0.attn_heads" not in seen:
            seen["mid.layer0.q_normed_roped"], seen["mid.layer0.attn_heads"] = q, heads
            seen["mid.layer0.k_normed_roped"], seen["mid.layer0.v"] = k, v
        return heads.transpose(1, 2).flatten(2)

    network.attention = attend
    hidden = network(ids)
    seen[f"mid.hidden_states.{network.config.num_layers}"] = hidden
    golden.assert_within(network.logits(hidden), case["out.logits"], TOLERANCE)
    for key in case.keys("mid.hidden_states.*") + case.keys("mid.layer0.*"):
        golden.assert_within(seen[key], case[key], TOLERANCE, key)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_cached_forward(case):
    """Half of the tokens at once, then one by one, then the last few as one block."""
    network, ids = load_network(case), case["in.input_ids"]
    length = ids.shape[1]
    cache = KVCache.allocate(network.config, 1, length + 3, torch.float32)
    logits, start = [], 0
    first, last = length // 2, min(6, length // 4)
    for count in [first] + [1] * (length - first - last) + [last]:
        positions = torch.arange(start, start + count)[None]
        logits.append(network.logits(network(ids[:, start : start + count], positions, [cache])))
        start += count
    assert start == length
    golden.assert_within(torch.cat(logits, dim=1), case["out.logits_cached"], TOLERANCE)
    kept = {
        "mid.cache.layer0.key": cache.keys[0],
        "mid.cache.layer0.value": cache.values[0],
        "mid.cache.last.key": cache.keys[-1],
    }
    for key, stored in ((key, stored) for key, stored in kept.items() if key in case):
        golden.assert_within(stored[:, :, :length], case[key], TOLERANCE, key)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_guidance_row_starts_at_its_own_first_token(case):
    """A row that never saw a prefix: restarted alone, masked beside a full row, and in a cache of its own."""
    network, pair = load_network(case), case["in.pair_attention_mask"]
    start = int((pair[1] == 0).sum())
    ids, expected = case["in.input_ids"], case["out.logits_masked_pair"]
    golden.assert_within(network.logits(network(ids[:, start:])), case[f"out.logits_restart_from_{start}"], TOLERANCE)

    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = (causal & pair[:, None, None, :].bool()) | torch.eye(length, dtype=torch.bool)
    masked = network.logits(network(ids.expand(2, -1), case["in.pair_position_ids"], mask=mask))
    golden.assert_within(masked[:, start:], expected, TOLERANCE)

    full, short = (KVCache.allocate(network.config, 1, size, torch.float32) for size in (length, length - start))
    network(ids[:, :start], caches=[full])
    positions = torch.stack([torch.arange(start, length), torch.arange(length - start)])
    together = network.logits(network(ids[:, start:].expand(2, -1), positions, [full, short]))
    golden.assert_within(together, expected, TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_training_loss(case):
    """Shifted cross entropy over the targets; the z-loss of the positions whose own label is a target."""
    network = load_network(case)
    logits, labels = network.logits(network(case["in.input_ids"])), case["in.labels"]
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    golden.assert_within(loss[None], case["out.loss"], LOSS_TOLERANCE)
    z_loss = logits.logsumexp(dim=-1)[labels >= 0].square().mean()
    golden.assert_within(z_loss[None], case["out.z_loss_reference_alignment"], Z_LOSS_TOLERANCE)
