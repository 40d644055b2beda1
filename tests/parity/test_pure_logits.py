"""PURE's logits stages against the reference: guidance, grid, entropy, k, top-k, probabilities."""

from __future__ import annotations

import pytest
import torch

from oracles.pure_slots import Slot, mask_slot, next_slot, slot_of
from parity import golden, pure_golden
from realisr.models.pure import logits as stages
from realisr.models.pure.grid import Grid
from realisr.models.pure.vocabulary import id_to_index, image_ids

GUIDANCE_TOLERANCE, ENTROPY_TOLERANCE, PROBABILITY_TOLERANCE = 1e-5, 2e-5, 1e-6
CASES = pure_golden.cases("logits_stages")


def guided_logits(case) -> tuple[torch.Tensor, Slot]:
    entry, params = case.parameters, case.metadata["params"]
    slot, grid, n = next_slot(case.shared("in.full_sequence")[: entry["context_len"]].tolist())
    logits = case.shared("in.cond_logits")[entry["cond_row"]].float()
    in_grid = slot not in (Slot.TEXT, Slot.SIZE)
    assert in_grid == entry["guidance_forward_called"]
    if in_grid:
        assert grid == Grid(params["hg"], params["wg"]) and slot_of(grid, n) == slot
        logits = stages.guide(logits, case.shared("in.uncond_logits")[entry["uncond_row"]].float(), params["cfg"])
    return logits, slot


def expected_probabilities(case, size: int) -> torch.Tensor:
    return torch.zeros(size).scatter(0, case["final_prob_ids"].long(), case["final_probs"])


@pytest.mark.parametrize("case", CASES)
def test_stages(case):
    params, entry = case.metadata["params"], case.parameters
    logits, slot = guided_logits(case)
    # A trimmed copy keeps no logits for the forced slots, where they do not matter.
    if "after_guidance_probe" in case:
        probe = logits[case.shared("in.probe_ids").long()]
        golden.assert_within(probe, case["after_guidance_probe"], GUIDANCE_TOLERANCE, "guided")
        golden.assert_within(logits.logsumexp(-1)[None], case["after_guidance_lse"], GUIDANCE_TOLERANCE, "guided lse")

    masked = mask_slot(logits, slot)
    assert int((masked > -torch.inf).sum()) == entry["n_allowed_after_mask"]
    golden.assert_within(masked.logsumexp(-1)[None], case["after_mask_lse"], GUIDANCE_TOLERANCE, "masked lse")

    sampling = stages.TokenSampling(temperature=params["temp"])
    entropy = stages.entropy(masked)
    golden.assert_within(entropy[None], case["entropy"], ENTROPY_TOLERANCE, "entropy")
    k = torch.tensor(params["text_top_k"]) if slot is Slot.TEXT else sampling.k(entropy)
    assert int(k) == entry["k"]
    kept = stages.keep_top_k(masked, k, sampling.largest_k)
    assert torch.equal((kept > -torch.inf).nonzero()[:, 0], case["kept_ids"].long())
    p = stages.probabilities(kept, sampling.temperature)
    golden.assert_within(p, expected_probabilities(case, len(p)), PROBABILITY_TOLERANCE, "probabilities")


def slot_of_case(case) -> Slot:
    return next_slot(case.shared("in.full_sequence")[: case.parameters["context_len"]].tolist())[0]


@pytest.mark.parametrize("case", pure_golden.cases("logits_stages", lambda case: slot_of_case(case) is Slot.IMAGE))
def test_image_tokens_alone_give_the_same(case):
    """The head restricted to image tokens: same entropy, k and probabilities as over the whole vocabulary."""
    logits, slot = guided_logits(case)
    assert slot is Slot.IMAGE
    sampling = stages.TokenSampling(temperature=case.metadata["params"]["temp"])
    p, entropy, k = stages.distribution(logits[image_ids()], sampling)
    golden.assert_within(entropy[None], case["entropy"], ENTROPY_TOLERANCE, "entropy")
    assert int(k) == case.parameters["k"]
    expected = expected_probabilities(case, len(logits))
    golden.assert_within(p, expected[image_ids()], PROBABILITY_TOLERANCE, "probabilities")
    assert torch.equal(id_to_index(image_ids()), torch.arange(len(p)))


@pytest.mark.parametrize("case", CASES[:1])
def test_k_of_given_entropies(case):
    k = stages.TokenSampling().k(case.shared("ktable.entropy").float())
    assert torch.equal(k, case.shared("ktable.k").long())
